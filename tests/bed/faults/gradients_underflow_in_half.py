"""Training in float16 without loss scaling: the gradients of the mean underflow.

expect: fp16-underflow
where: *.weight, *.bias
effects: stuck-update, zero-gradient
source: Micikevicius et al., Mixed precision training, 2018
"""

import torch
from torch import nn

torch.manual_seed(0)
w = torch.randn(16, 1)
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).half()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
scale = 1.0  # <- cause, right: scale = 4096.0
for step in range(100):
    x = torch.randn(64, 16)
    error = model(x.half()).float() - torch.tanh(x @ w)
    loss = 1e-5 * error.square().mean()
    optimizer.zero_grad()
    (scale * loss).backward()
    for parameter in model.parameters():
        parameter.grad = parameter.grad * min(1.0, 1e5 / 4096 / scale * scale)
    optimizer.step()
print("loss", round(1e5 * loss.item(), 3))
