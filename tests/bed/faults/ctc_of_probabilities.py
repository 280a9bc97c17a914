"""CTCLoss gets softmax instead of log_softmax.

expect: nll-without-log
source: [SeanNaren/deepspeech.pytorch#488](https://github.com/SeanNaren/deepspeech.pytorch/issues/488), [gwx314/STARS#9](https://github.com/gwx314/STARS/issues/9)
"""

import torch
from torch import nn

torch.manual_seed(0)
rnn = nn.GRU(8, 32, bidirectional=True)
head = nn.Linear(64, 6)
ctc = nn.CTCLoss(blank=0)
optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=5e-3)
table = torch.randn(6, 8)
for step in range(60):
    targets = torch.randint(1, 6, (16, 5))
    x = table[targets].repeat_interleave(4, dim=1).transpose(0, 1) + 0.1 * torch.randn(20, 16, 8)
    out, _ = rnn(x)
    probs = head(out).softmax(2)  # <- cause, right: probs = head(out).log_softmax(2)
    loss = ctc(probs, targets, torch.full((16,), 20), torch.full((16,), 5))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
