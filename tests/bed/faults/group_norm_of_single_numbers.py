"""GroupNorm(16, 16) on vectors of 16: each group is one number, and its norm is 0 for every input.

expect: batch-norm-of-one, zero-gradient
where: 1
source: Wu and He, Group normalization, 2018; PyTorch's documentation of GroupNorm
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(8, 16),
    nn.GroupNorm(16, 16),  # <- cause, right: nn.GroupNorm(4, 16),
    nn.ReLU(),
    nn.Linear(16, 3),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 3)
for step in range(60):
    x = torch.randn(64, 8)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
