"""VICReg: variance, invariance and covariance."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
f = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))
opt = torch.optim.SGD(f.parameters(), lr=0.02, momentum=0.9)


def terms(z):
    std = torch.sqrt(z.var(0) + 1e-4)
    zc = z - z.mean(0)
    cov = zc.T @ zc / (len(z) - 1)
    return F.relu(1 - std).mean(), (cov.pow(2).sum() - cov.diagonal().pow(2).sum()) / z.shape[1]


for step in range(60):
    x = torch.randn(64, 24)
    a, b = f(x + 0.2 * torch.randn_like(x)), f(x + 0.2 * torch.randn_like(x))
    va, ca = terms(a)
    vb, cb = terms(b)
    loss = 5 * F.mse_loss(a, b) + 5 * (va + vb) + ca + cb
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
