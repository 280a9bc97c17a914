"""Denoising score matching with an energy: the score is a gradient of the network."""

import torch
from sklearn.datasets import make_moons
from torch import nn

torch.manual_seed(0)
data = torch.tensor(make_moons(2000, noise=0.05, random_state=0)[0], dtype=torch.float32)
data = (data - data.mean(0)) / data.std(0)
energy = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3)
sigma = 0.4
for step in range(100):
    x = data[torch.randint(2000, (128,))]
    noise = torch.randn_like(x)
    noisy = (x + sigma * noise).requires_grad_(True)
    (slope,) = torch.autograd.grad(energy(noisy).sum(), noisy, create_graph=True)
    loss = (sigma * slope - noise).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
