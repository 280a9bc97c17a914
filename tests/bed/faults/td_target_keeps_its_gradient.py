"""The target of TD(0) is computed by the same network with its gradient.

expect: trained-target
source: [Farama-Foundation/Gymnasium#1494](https://github.com/Farama-Foundation/Gymnasium/issues/1494), [philtabor/Youtube-Code-Repository#41](https://github.com/philtabor/Youtube-Code-Repository/issues/41)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
value = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(value.parameters(), lr=2e-3)
for step in range(80):
    states = torch.randn(64, 4)
    followings = 0.9 * states + 0.3 * torch.randn(64, 4)
    rewards = states[:, :1].clamp(min=0)
    target = rewards + 0.9 * value(followings)  # <- cause, right: target = rewards + 0.9 * value(followings).detach()
    loss = F.mse_loss(value(states), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
