"""An optimizer made with maximize=True minimizes nothing.

expect: loss-ascends
effects: update-too-large, loss-spike, learning-rate-too-high, saturated
source: [SGD](https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html), option maximize; Humbatova et al.,
 2020 (wrong optimisation)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(3)
w = torch.randn(5, 1)
model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, maximize=True)  # <- cause, right: optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for step in range(100):
    x = torch.randn(32, 5)
    loss = F.mse_loss(model(x), torch.tanh(x @ w))  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
