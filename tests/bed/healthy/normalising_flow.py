"""A flow of affine coupling layers (RealNVP), trained by maximum likelihood."""

import math

import torch
from sklearn.datasets import make_moons
from torch import nn

torch.manual_seed(0)
data = torch.tensor(make_moons(2000, noise=0.1, random_state=0)[0], dtype=torch.float32)
data = (data - data.mean(0)) / data.std(0)


class Coupling(nn.Module):
    def __init__(self, keeps):
        super().__init__()
        self.keeps = keeps
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x):
        kept, moved = x[:, self.keeps : self.keeps + 1], x[:, 1 - self.keeps : 2 - self.keeps]
        log_scale, shift = self.net(kept).chunk(2, dim=1)
        log_scale = torch.tanh(log_scale)
        moved = moved * log_scale.exp() + shift
        parts = (kept, moved) if self.keeps == 0 else (moved, kept)
        return torch.cat(parts, dim=1), log_scale[:, 0]


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2) for i in range(4))

    def forward(self, x):
        total = 0.0
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return -0.5 * (x**2 + math.log(2 * math.pi)).sum(1) + total


flow = Flow()
optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
for step in range(120):
    loss = -flow(data[torch.randint(2000, (128,))]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("nats", round(loss.item(), 3))
