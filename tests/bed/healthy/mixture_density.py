"""A mixture density network: the likelihood by logsumexp over the components."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Tanh())
        self.weight, self.mean, self.log_std = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x, y):
        h = self.body(x)
        z = (y - self.mean(h)) * torch.exp(-self.log_std(h))
        log_normal = -0.5 * z**2 - self.log_std(h) - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(F.log_softmax(self.weight(h), 1) + log_normal, dim=1).mean()


model = Mixture()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(120):
    y = 2 * torch.rand(128, 1) - 1
    x = y + 0.4 * torch.sin(5 * y) + 0.05 * torch.randn(128, 1)
    loss = model(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("nats", round(loss.item(), 3))
