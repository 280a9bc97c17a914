"""Bayes by backprop: weights are drawn in each forward pass, and the loss has a KL term of the whole data set."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Layer(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.rho = nn.Parameter(torch.full((outputs, inputs), -4.0))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        deviation = F.softplus(self.rho)
        return F.linear(x, self.mean + deviation * torch.randn_like(deviation), self.bias)

    def divergence(self):
        deviation = F.softplus(self.rho)
        return 0.5 * (deviation**2 + self.mean**2 - 1 - 2 * deviation.log()).sum()


model = nn.Sequential(Layer(1, 32), nn.Tanh(), Layer(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
x = torch.rand(512, 1) * 4 - 2
y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    fit = F.gaussian_nll_loss(model(x[rows]), y[rows], torch.full((64, 1), 0.05))
    loss = fit + (model[0].divergence() + model[2].divergence()) / len(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("fit", round(fit.item(), 3))
