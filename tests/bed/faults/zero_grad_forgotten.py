"""zero_grad() is never called, so every gradient is the sum of all before.

expect: accumulated-gradient
where: *.weight, *.bias
effects: learning-rate-too-high, update-too-large, loss-spike
source: [wenet-e2e/wekws#73](https://github.com/wenet-e2e/wekws/pull/73), [meta-pytorch/torchforge#71](https://github.com/meta-pytorch/torchforge/pull/71); Jiang et al., Training with confidence (TrainCheck), 2025
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
w = torch.randn(8, 1)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), x @ w)
    loss.backward()  # <- cause, right: optimizer.zero_grad(); loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
