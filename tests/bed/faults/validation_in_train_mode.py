"""Validation runs in train mode and moves the running statistics of the batch norm to other data.

expect: train-while-evaluating
where: model, 1, *norm*
source: [nshaud/DeepHyperX#51](https://github.com/nshaud/DeepHyperX/issues/51), [wolny/pytorch-3dunet#53](https://github.com/wolny/pytorch-3dunet/issues/53)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 12)
model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
other = torch.randint(5, (200,))
shifted = 3 * centres[other] + 4 + torch.randn(200, 12)
for step in range(100):
    y = torch.randint(5, (64,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(64, 12)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.train()  # <- cause, right: model.eval()
        validation = F.cross_entropy(model(shifted), other)  # <- cause
        model.train()
model.eval()
y = torch.randint(5, (1000,))
print("loss", round(F.cross_entropy(model(centres[y] + torch.randn(1000, 12)), y).item(), 3))
