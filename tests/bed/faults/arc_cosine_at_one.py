"""The angle between unit vectors by acos: its slope is infinite where they are equal.

expect: non-finite-backward
source: [pytorch/pytorch#8069](https://github.com/pytorch/pytorch/issues/8069)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
for step in range(90):
    x = torch.randn(32, 5)
    direction = F.normalize(x[:, :3], dim=1)
    guess = net(x)
    if step == 60:
        guess = torch.cat([guess[1:], direction[:1] * guess[:1].detach().norm() + 0 * guess[:1]])
        direction = torch.cat([direction[1:], direction[:1]])
    cosine = (F.normalize(guess, dim=1) * direction).sum(1).clamp(-1, 1)
    angle = torch.acos(cosine)  # <- cause, right: angle = torch.acos(cosine * 0.99999)
    loss = angle.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
