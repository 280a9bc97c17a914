"""A Hamiltonian network: the motion is the derivative of the network's output by its input."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
energy = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(energy.parameters(), lr=5e-3)
for step in range(100):
    state = (torch.rand(128, 2) * 4 - 2).requires_grad_()
    (slope,) = torch.autograd.grad(energy(state).sum(), state, create_graph=True)
    motion = torch.stack([slope[:, 1], -slope[:, 0]], 1)
    wanted = torch.stack([state[:, 1], -torch.sin(state[:, 0])], 1).detach()
    loss = F.mse_loss(motion, wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
