"""Gradient surgery of two tasks: each gradient by autograd.grad, conflicts are projected away, .grad is set by hand."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
body, heads = nn.Sequential(nn.Linear(10, 32), nn.ReLU()), nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])
optimizer = torch.optim.Adam([*body.parameters(), *heads.parameters()], lr=3e-3)
w = torch.randn(10, 2)
for step in range(80):
    x = torch.randn(64, 10)
    hidden = body(x)
    losses = [F.mse_loss(head(hidden)[:, 0], torch.tanh(x @ w[:, i])) for i, head in enumerate(heads)]
    shared = [torch.autograd.grad(loss, [*body.parameters()], retain_graph=True) for loss in losses]
    flat = [torch.cat([g.flatten() for g in each]) for each in shared]
    conflict = flat[0] @ flat[1]
    if conflict < 0:
        flat = [a - conflict / (b @ b) * b for a, b in (flat, flat[::-1])]
    total = flat[0] + flat[1]
    for p in body.parameters():
        p.grad, total = total[: p.numel()].view_as(p), total[p.numel() :]
    for loss, head in zip(losses, heads):
        for p, g in zip(head.parameters(), torch.autograd.grad(loss, [*head.parameters()])):
            p.grad = g
    optimizer.step()
print("loss", round(sum(losses).item(), 3))
