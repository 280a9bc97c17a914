"""Model-agnostic meta-learning of sines: an inner step with create_graph, an outer step with Adam."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(60):
    total = 0.0
    for _ in range(3):
        height, phase = 0.5 + torch.rand(1), math.pi * torch.rand(1)
        x = 6 * torch.rand(20, 1) - 3
        y = height * torch.sin(x + phase)
        weights = dict(net.named_parameters())
        inner = F.mse_loss(functional_call(net, weights, x[:10]), y[:10])
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {name: w - 0.05 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        total = total + F.mse_loss(functional_call(net, moved, x[10:]), y[10:])
    loss = total / 3
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
