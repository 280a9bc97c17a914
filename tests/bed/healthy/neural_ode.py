"""A neural ODE: Runge-Kutta steps through a network, trained on spirals."""

import torch
from torch import nn

torch.manual_seed(0)
A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(field.parameters(), lr=5e-3)


def solve(f, z, steps=8, dt=0.1):
    path = []
    for _ in range(steps):
        k1 = f(z)
        k2 = f(z + dt / 2 * k1)
        k3 = f(z + dt / 2 * k2)
        k4 = f(z + dt * k3)
        z = z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(z)
    return torch.stack(path)


for step in range(60):
    start = torch.randn(32, 2)
    with torch.no_grad():
        wanted = solve(lambda z: z @ A.T, start)
    loss = (solve(field, start) - wanted).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
