"""The norm of a gradient penalty runs over the channels alone, and is 1 for each pixel.

expect: penalty-per-part
source: [Zeleni9/pytorch-wgan#40](https://github.com/Zeleni9/pytorch-wgan/issues/40)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
X = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
G = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
D = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, 1))
og = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.5, 0.9))
od = torch.optim.Adam(D.parameters(), lr=1e-4, betas=(0.5, 0.9))
for step in range(25):
    for _ in range(3):
        real = X[torch.randint(len(X), (32,))]
        fake = G(torch.randn(32, 16)).detach()
        eta = torch.rand(32, 1, 1, 1)
        mixed = (eta * real + (1 - eta) * fake).requires_grad_()
        score = D(mixed)
        grads = torch.autograd.grad(score, mixed, torch.ones_like(score), create_graph=True)[0]
        penalty = ((grads.norm(2, dim=1) - 1) ** 2).mean() * 10  # <- cause, right: penalty = ((grads.flatten(1).norm(2, dim=1) - 1) ** 2).mean() * 10
        d_loss = D(fake).mean() - D(real).mean() + penalty
        od.zero_grad()
        d_loss.backward()
        od.step()
    g_loss = -D(G(torch.randn(32, 16))).mean()
    og.zero_grad()
    g_loss.backward()
    og.step()
print(d_loss.item())
