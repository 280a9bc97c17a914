"""Evolution strategies: the gradient is estimated from perturbed copies, without any backward pass."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Linear(6, 3)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
x = torch.randn(256, 6)
y = (x @ torch.randn(6, 3)).argmax(1)


@torch.no_grad()
def loss_at(noise, sign):
    for p, n in zip(model.parameters(), noise):
        p.add_(sign * 0.05 * n)
    loss = F.cross_entropy(model(x), y)
    for p, n in zip(model.parameters(), noise):
        p.sub_(sign * 0.05 * n)
    return loss


for step in range(60):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(16):
        noise = [torch.randn_like(p) for p in model.parameters()]
        difference = (loss_at(noise, 1) - loss_at(noise, -1)) / 0.1
        for p, n in zip(model.parameters(), noise):
            p.grad += difference * n / 16
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
