"""Lookahead over Adam: every five steps the fast weights fall back to the slow ones."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 1))
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
slow = [p.detach().clone() for p in net.parameters()]
w = torch.randn(10, 1)
for step in range(80):
    x = torch.randn(64, 10)
    loss = F.mse_loss(net(x), torch.sin(x @ w))
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 5 == 4:
        with torch.no_grad():
            for p, s in zip(net.parameters(), slow, strict=True):
                s.lerp_(p, 0.5)
                p.copy_(s)
print(loss.item())
