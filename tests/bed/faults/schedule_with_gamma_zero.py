"""A schedule switched off with gamma=0, not 1: after 30 steps the rate is 0.

expect: learning-rate-jump, stuck-update
where: optimizer, *.weight, *.bias, learning rate, group *
source: [LINCellularNeuroscience/VAME#26](https://github.com/LINCellularNeuroscience/VAME/issues/26)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.0)  # <- cause, right: scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=1.0)
w = torch.randn(6, 1)
for step in range(110):
    x = torch.randn(64, 6)
    loss = F.mse_loss(model(x), torch.sin(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()  # <- cause
print("loss", round(loss.item(), 3))
