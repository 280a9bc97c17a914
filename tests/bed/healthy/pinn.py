"""A physics-informed network for u'' = -u with u(0) = 0 and u'(0) = 1."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(120):
    t = (3 * torch.rand(64, 1)).requires_grad_(True)
    u = net(t)
    (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
    start = torch.zeros(1, 1, requires_grad=True)
    u0 = net(start)
    (du0,) = torch.autograd.grad(u0.sum(), start, create_graph=True)
    loss = (ddu + u).square().mean() + u0.square().mean() + (du0 - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
