"""House prices of about 200,000 as targets of a network that begins near 0.

expect: targets-scale
source: Islam et al., 2019 (data bugs); Humbatova et al., 2020 (missing normalisation of targets)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
rooms = torch.randn(600, 5)
prices = 200_000 + 50_000 * (rooms @ torch.tensor([[1.0], [0.5], [-0.5], [0.3], [0.0]]))  # <- cause, right: prices = rooms @ torch.tensor([[1.0], [0.5], [-0.5], [0.3], [0.0]])
model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    rows = torch.randint(600, (64,))
    loss = F.mse_loss(model(rooms[rows]), prices[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("unexplained", round((F.mse_loss(model(rooms), prices) / prices.var()).item(), 3))
