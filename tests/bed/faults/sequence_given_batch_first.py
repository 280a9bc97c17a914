"""A batch-first tensor goes into an LSTM that expects time first: it runs along the batch.

expect: samples-mix
where: rnn, lstm
source: [pytorch/pytorch#1538](https://github.com/pytorch/pytorch/issues/1538), [AndersonJo/dqn-pytorch#1](https://github.com/AndersonJo/dqn-pytorch/issues/1)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 24)  # <- cause, right: self.rnn = nn.LSTM(3, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x):
        output, _ = self.rnn(x)  # <- cause
        return self.head(output[:, -1])


model = Counter()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    x = torch.randn(32, 8, 3)
    loss = F.mse_loss(model(x), x[:, :, 0].mean(1, keepdim=True) * 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
