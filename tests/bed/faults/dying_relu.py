"""Biases of -10 (a sign error in the initialisation): nearly every ReLU is off.

expect: unit-off, zero-gradient
where: 1, 3, 0.*, 2.*, A1, A2
source: Lu et al., Dying ReLU and initialization, 2019; Zhang et al., AUTOTRAINER, 2021 (dying ReLU)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 12)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
nn.init.constant_(model[2].bias, -10.0)  # <- cause, right: nn.init.constant_(model[2].bias, 0.1)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(100):
    y = torch.randint(4, (64,))
    loss = F.cross_entropy(model(centres[y] + 0.8 * torch.randn(64, 12)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
