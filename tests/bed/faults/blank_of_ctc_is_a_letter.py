"""Letters are numbered from 0, which is CTC's blank.

expect: blank-in-targets
where: y
source: [espnet/espnet#700](https://github.com/espnet/espnet/issues/700)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class OCR(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(16, 32, bidirectional=True)
        self.fc = nn.Linear(64, 11)

    def forward(self, x):
        return self.fc(self.rnn(x)[0]).log_softmax(2)


model = OCR()
ctc = nn.CTCLoss(zero_infinity=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(12):
    y = torch.randint(0, 10, (8, 6))
    x = torch.randn(24, 8, 16)
    loss = ctc(model(x), y, torch.full((8,), 24), torch.full((8,), 6))  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
