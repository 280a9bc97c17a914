"""nn.LeakyReLU(True), meant as inplace=True, has a slope of 1: the network is linear.

expect: no-activation
where: 0, 2
source: PyTorch's documentation of LeakyReLU: its first argument is the slope
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(True), nn.Linear(32, 32), nn.LeakyReLU(True), nn.Linear(32, 2))  # <- cause
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(25):
    x = torch.rand(64, 2) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
