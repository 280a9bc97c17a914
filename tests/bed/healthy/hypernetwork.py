"""A hypernetwork writes the weights of a small network for each task, which functional_call runs."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
small = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).requires_grad_(False)
shapes = {name: p.shape for name, p in small.named_parameters()}
hyper = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, sum(s.numel() for s in shapes.values())))
optimizer = torch.optim.Adam(hyper.parameters(), lr=2e-3)
for step in range(80):
    optimizer.zero_grad()
    loss = torch.zeros(())
    for _ in range(4):
        task = torch.rand(2) * 2 - 1
        flat, weights = hyper(task), {}
        for name, shape in shapes.items():
            weights[name], flat = flat[: shape.numel()].view(shape), flat[shape.numel() :]
        x = torch.rand(32, 1) * 4 - 2
        loss = loss + F.mse_loss(functional_call(small, weights, (x,)), task[0] * x + task[1])
    (loss / 4).backward()
    optimizer.step()
print("loss", round(loss.item() / 4, 3))
