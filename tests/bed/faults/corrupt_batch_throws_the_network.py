"""One batch is a hundred times too large (a file in another unit): the loss jumps and the network is hurt.

expect: loss-spike, input-not-normalised
where: *
effects: update-too-large, learning-rate-too-high, unit-off, zero-gradient
source: Chowdhery et al., PaLM, 2022; Humbatova et al., 2020 (outliers in training data)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(8, 1) / 3
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for step in range(100):
    x = torch.randn(32, 8)
    y = torch.tanh(x @ w)
    if step == 70:
        x = x * 100  # <- cause, right: pass
    loss = F.mse_loss(model(x), y)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
