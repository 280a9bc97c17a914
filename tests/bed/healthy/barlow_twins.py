"""Barlow Twins: the loss is a cross-correlation over the batch."""

import torch
from torch import nn

torch.manual_seed(0)
f = nn.Sequential(nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
bn = nn.BatchNorm1d(16, affine=False)
opt = torch.optim.Adam(f.parameters(), lr=2e-3)
for step in range(60):
    x = torch.randn(64, 24)
    a, b = f(x + 0.3 * torch.randn_like(x)), f(x + 0.3 * torch.randn_like(x))
    c = bn(a).T @ bn(b) / 64
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = (c - torch.diag(torch.diagonal(c))).pow(2).sum()
    loss = on + 0.005 * off
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
