"""A learnable scale is a plain tensor with requires_grad, not an nn.Parameter: the optimizer never gets it.

expect: not-in-optimizer
where: scale, *scale*
source: [pytorch/pytorch#666](https://github.com/pytorch/pytorch/issues/666) (what a module registers); Humbatova et al., 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(6, requires_grad=True)  # <- cause, right: self.scale = nn.Parameter(torch.ones(6))
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        return self.out(torch.sin(x * self.scale))  # <- cause


model = Scaled()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
for step in range(120):
    x = torch.randn(64, 6)
    loss = F.mse_loss(model(x), torch.sin(2 * x).sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
