"""`total += loss` without .item() keeps the graph of every step: memory grows with each step.

expect: kept-graph
source: [google/brax#152](https://github.com/google/brax/pull/152), [BatsResearch/labelmodels#4](https://github.com/BatsResearch/labelmodels/issues/4)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
total = 0.0
for step in range(80):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.tanh(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total += loss  # <- cause, right: total += loss.item()
print("mean loss", round(float(total) / 80, 3))
