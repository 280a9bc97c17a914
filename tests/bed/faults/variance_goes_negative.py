"""A Gaussian likelihood whose variance is a bare output: once it is negative, its logarithm is NaN.

expect: non-finite-forward
effects: update-too-large, loss-spike
source: Nix and Weigend, Estimating the mean and variance, 1994 (exponential for the variance); PyTorch forum
"""

import torch
from torch import nn

torch.manual_seed(0)


class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 24), nn.Tanh())
        self.mean, self.variance = nn.Linear(24, 1), nn.Linear(24, 1)
        nn.init.constant_(self.variance.bias, 1.0)

    def forward(self, x):
        h = self.body(x)
        return self.mean(h), self.variance(h)  # <- cause, right: return self.mean(h), self.variance(h).exp()


model = Gaussian()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
for step in range(100):
    x = torch.randn(64, 3)
    y = x[:, :1] + 0.1 * torch.randn(64, 1)
    mean, variance = model(x)
    loss = 0.5 * (torch.log(variance) + (y - mean) ** 2 / variance).mean()  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
