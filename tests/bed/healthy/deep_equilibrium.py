"""A deep equilibrium model: the fixed point is found under no_grad, then one step with a gradient."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Equilibrium(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.step, self.out = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def cell(self, z, x):
        return torch.tanh(0.5 * self.step(z) + self.inp(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros(len(x), 24)
            for _ in range(15):
                z = self.cell(z, x)
        return self.out(self.cell(z, x))


model = Equilibrium()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(6, 3)
for step in range(100):
    x = torch.randn(64, 6)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
