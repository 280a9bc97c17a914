"""The gradient of eigenvectors divides by differences of eigenvalues: two are equal, and it is infinite or NaN.

expect: non-finite-backward
effects: forward-failed
source: [pytorch/pytorch#49886](https://github.com/pytorch/pytorch/issues/49886), [jax-ml/jax#2311](https://github.com/jax-ml/jax/issues/2311)
"""

import torch
from torch import nn

torch.manual_seed(0)
factor = nn.Parameter(torch.zeros(4, 4))
mix = nn.Linear(4, 1)
optimizer = torch.optim.Adam([factor, *mix.parameters()], lr=1e-2)
for step in range(60):
    x = torch.randn(32, 4)
    matrix = torch.eye(4) + factor @ factor.T
    matrix = matrix  # <- cause, right: matrix = matrix + torch.diag(torch.arange(4.0)) + torch.full((4, 4), 0.1)
    _, vectors = torch.linalg.eigh(matrix)  # <- cause
    loss = (mix((x @ vectors).tanh()) - x[:, :1]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
