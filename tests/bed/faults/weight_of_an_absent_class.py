"""Classes are weighted by one over their count in the batch: an absent class gets an infinite weight.

expect: non-finite-forward, non-finite-backward
source: [perslev/MultiPlanarUNet#24](https://github.com/perslev/MultiPlanarUNet/issues/24), [fcakyon/balanced-loss#12](https://github.com/fcakyon/balanced-loss/pull/12)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
centres = torch.randn(5, 8) * 2
for step in range(80):
    y = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02]), 64, replacement=True)
    x = centres[y] + torch.randn(64, 8)
    counts = torch.bincount(y, minlength=5).float()
    weight = 1 / counts  # <- cause, right: weight = 1 / counts.clamp(min=1)
    weight = weight / weight.sum() * 5
    loss = F.cross_entropy(model(x), y, weight=weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
