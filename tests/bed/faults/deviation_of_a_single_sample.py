"""The unbiased deviation of a batch of one is NaN: the last batch of an epoch has one sample.

expect: non-finite-forward
source: [pytorch/pytorch#4320](https://github.com/pytorch/pytorch/issues/4320) (comment on one entry); `torch.std`
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x = torch.randn(321, 6)
y = x @ torch.randn(6, 1)
model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for epoch in range(8):
    for rows in torch.randperm(321).split(20):
        output = model(x[rows])
        spread = output.std()  # <- cause, right: spread = output.std(unbiased=False)
        loss = F.mse_loss(output, y[rows]) + 0.01 * (spread - 1).abs()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
