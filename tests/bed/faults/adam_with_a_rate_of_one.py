"""Adam with lr=1: each step replaces the weights.

expect: update-too-large, learning-rate-too-high
where: *.weight, *.bias, loss
effects: loss-spike, saturated
source: Cao et al., DeepFD, 2022 (improper learning rate); Schoop et al., UMLAUT, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 10)
model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1.0)  # <- cause, right: optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    y = torch.randint(4, (32,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(32, 10)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
