"""Layers in a plain Python list are no submodules, so the optimizer never gets them.

expect: not-in-optimizer
where: *layers*
source: [pytorch/pytorch#666](https://github.com/pytorch/pytorch/issues/666), [pytorch/pytorch#715](https://github.com/pytorch/pytorch/issues/715)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(8, 8) for _ in range(3)]  # <- cause, right: self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))  # <- cause
        return self.out(x)


model = Stack()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(120):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
