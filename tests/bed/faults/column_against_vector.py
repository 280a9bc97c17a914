"""Predictions (N, 1) against targets (N,): mse_loss broadcasts to N x N.

expect: broadcast-in-loss
source: [pytorch/pytorch#16045](https://github.com/pytorch/pytorch/issues/16045), [pytorch/pytorch#19699](https://github.com/pytorch/pytorch/issues/19699)
"""

import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
w = torch.randn(8)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
criterion = nn.MSELoss()
for step in range(100):
    x = torch.randn(64, 8)
    y = x @ w + 0.1 * torch.randn(64)
    loss = criterion(model(x), y)  # <- cause, right: loss = criterion(model(x).squeeze(1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x = torch.randn(1000, 8)
print("error", round((model(x).squeeze(1) - x @ w).square().mean().item(), 3))
