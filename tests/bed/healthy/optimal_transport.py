"""Points are moved to another cloud by a Sinkhorn distance: no network, and the parameters are the points."""

import torch
from torch import nn

torch.manual_seed(0)
points = nn.Parameter(torch.randn(64, 2))
angle = torch.rand(80) * 6.28
ring = torch.stack([angle.cos(), angle.sin()], 1) * 2 + 0.05 * torch.randn(80, 2)
optimizer = torch.optim.Adam([points], lr=0.05)
for step in range(60):
    cost = torch.cdist(points, ring).square()
    potential = torch.zeros(64)
    for _ in range(20):
        other = -0.1 * torch.logsumexp((potential[:, None] - cost) / 0.1 - torch.log(torch.tensor(64.0)), 0)
        potential = -0.1 * torch.logsumexp((other[None] - cost) / 0.1 - torch.log(torch.tensor(80.0)), 1)
    loss = potential.mean() + other.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
