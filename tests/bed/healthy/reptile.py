"""Reptile on sine waves: inner SGD on a copy, then the outer weights move towards it."""

import copy
import math

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
for it in range(20):
    amp, phase = 0.1 + 4.9 * torch.rand(1), math.pi * torch.rand(1)
    before = copy.deepcopy(model.state_dict())
    inner = torch.optim.SGD(model.parameters(), lr=0.02)
    x = 10 * torch.rand(50, 1) - 5
    y = amp * torch.sin(x + phase)
    for k in range(5):
        i = torch.randint(50, (10,))
        loss = (model(x[i]) - y[i]).pow(2).mean()
        inner.zero_grad()
        loss.backward()
        inner.step()
    after = model.state_dict()
    eps = 0.1 * (1 - it / 20)
    model.load_state_dict({n: before[n] + eps * (after[n] - before[n]) for n in before})
print(loss.item())
