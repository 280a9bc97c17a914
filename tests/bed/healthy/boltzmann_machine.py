"""A restricted Boltzmann machine by contrastive divergence: gradients by hand, and no loss."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = (torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) > 7).float()
weight, visible, hidden = (
    nn.Parameter(each) for each in (0.01 * torch.randn(64, 32), torch.zeros(64), torch.zeros(32))
)
optimizer = torch.optim.SGD([weight, visible, hidden], lr=0.1, momentum=0.5)
for step in range(100):
    data = x[torch.randint(len(x), (64,))]
    with torch.no_grad():
        up = torch.sigmoid(data @ weight + hidden)
        down = torch.sigmoid(torch.bernoulli(up) @ weight.T + visible)
        again = torch.sigmoid(down @ weight + hidden)
        weight.grad = -(data.T @ up - down.T @ again) / 64
        visible.grad = -(data - down).mean(0)
        hidden.grad = -(up - again).mean(0)
    optimizer.step()
print("error", round((data - down).square().mean().item(), 4))
