"""Sample weights (N,) times losses (N, 1): each loss gets the mean of all weights.

expect: broadcast-in-loss
source: [bayesflow-org/bayesflow#787](https://github.com/bayesflow-org/bayesflow/issues/787)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(512, 8)
prices = features[:, :1] * 2 + features[:, 1:2] ** 2
trust = torch.rand(512)
prices += (trust < 0.3)[:, None] * torch.randn(512, 1) * 5
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    rows = torch.randint(0, 512, (64,))
    errors = F.mse_loss(model(features[rows]), prices[rows], reduction="none")
    loss = (errors * trust[rows]).mean()  # <- cause, right: loss = (errors.squeeze(1) * trust[rows]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
