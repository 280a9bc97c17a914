"""The derivative of a physics-informed net is taken without create_graph: the equation is a constant for backward.

expect: loss-part-without-gradient
where: ode
source: [pytorch/pytorch#31984](https://github.com/pytorch/pytorch/issues/31984)
"""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(80):
    t = torch.rand(64, 1, requires_grad=True)
    u = net(t)
    (du,) = torch.autograd.grad(u, t, torch.ones_like(u), retain_graph=True)  # <- cause, right: (du,) = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)
    ode = (du + 2 * u.detach()).pow(2).mean()
    start = (net(torch.zeros(1, 1)) - 1).pow(2).mean()
    loss = ode + start
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
