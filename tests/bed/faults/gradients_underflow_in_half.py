"""A model in float16 without loss scaling: most of its gradients underflow.

expect: fp16-underflow
where: *.weight, *.bias, float16 gradients
effects: stuck-update, zero-gradient
source: Micikevicius et al., Mixed precision training, 2018
"""

import torch
from torch import nn

torch.manual_seed(0)
SCALE = 1.0  # <- cause, right: SCALE = 4096.0
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
half = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).half()
optimizer = torch.optim.SGD(half.parameters(), lr=0.5)
w = torch.randn(16, 1)
for step in range(100):
    x = torch.randn(64, 16)
    error = half(x.half()).float() - torch.tanh(x @ w)
    loss = 1e-6 * error.square().mean()
    optimizer.zero_grad()
    (SCALE * loss).backward()
    for parameter in half.parameters():
        parameter.grad *= 1e6 / 4096 if SCALE > 1 else 1e4
    optimizer.step()
print("loss", round(1e6 * loss.item(), 3))
