"""The tutorial's polynomial fit of a sine, with an update by hand under no_grad and no optimizer at all."""

import math

import torch

torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 500) / math.pi
y = torch.sin(math.pi * x)
powers = torch.stack([x**k for k in range(4)], dim=1)
weights = torch.randn(4, requires_grad=True)
for step in range(150):
    loss = (powers @ weights - y).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        weights -= 0.3 * weights.grad
        weights.grad = None
print("loss", round(loss.item(), 4))
