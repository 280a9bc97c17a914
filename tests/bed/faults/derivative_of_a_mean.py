"""An equation takes the derivative of the mean of all points, which is 64 times too small at each.

expect: derivative-of-mean
source: Raissi et al., Physics-informed neural networks, 2019; PyTorch's documentation of torch.autograd.grad: grad_outputs
"""

import torch
from torch import nn

torch.manual_seed(0)
u = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
opt = torch.optim.Adam(u.parameters(), lr=3e-3)
x0 = torch.zeros(1, 1)
for it in range(90):
    x = torch.rand(64, 1).mul(2).requires_grad_()
    y = u(x)
    dy = torch.autograd.grad(y.mean(), x, create_graph=True)[0]  # <- cause
    loss = (dy + y).pow(2).mean() + (u(x0) - 1).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
