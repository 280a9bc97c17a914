"""A physics-informed net of ReLUs: its second derivative is 0 everywhere, so the equation is not seen.

expect: zero-gradient
where: 1
source: Raissi et al., Physics-informed neural networks, 2019 (smooth activations); the second derivative of a ReLU network is 0 almost everywhere
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(1, 32),
    nn.ReLU(),  # <- cause, right: nn.Tanh(),
    nn.Linear(32, 32),
    nn.ReLU(),  # <- cause, right: nn.Tanh(),
    nn.Linear(32, 1),
)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
ends = torch.tensor([[0.0], [1.0]])
for step in range(80):
    x = torch.rand(64, 1, requires_grad=True)
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    equation = (second + torch.sin(3.14159 * x)).square().mean()
    loss = equation + 10 * model(ends).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("equation", round(equation.item(), 4))
