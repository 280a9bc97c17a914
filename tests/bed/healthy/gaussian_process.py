"""A Gaussian process: the marginal likelihood through a Cholesky factor, on the same 60 points in each step."""

import math

import torch
from torch import nn

torch.manual_seed(0)
x = torch.linspace(0, 6, 60)
y = torch.sin(2 * x) + 0.1 * torch.randn(60)


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.length, self.scale, self.noise = (nn.Parameter(torch.tensor(0.0)) for _ in range(3))

    def forward(self):
        distance = (x[:, None] - x[None]) / self.length.exp()
        return self.scale.exp() * torch.exp(-0.5 * distance**2) + (self.noise.exp() + 1e-4) * torch.eye(60)


kernel = Kernel()
optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
for step in range(60):
    factor = torch.linalg.cholesky(kernel())
    solved = torch.cholesky_solve(y[:, None], factor)[:, 0]
    loss = 0.5 * y @ solved + factor.diagonal().log().sum() + 30 * math.log(2 * math.pi)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("negative log likelihood", round(loss.item(), 2))
