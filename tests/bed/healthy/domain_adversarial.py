"""Domain-adversarial training with a gradient reversal layer."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, upstream):
        return -0.3 * upstream


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.kind, self.domain = nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, x):
        h = self.body(x)
        return self.kind(h), self.domain(Reverse.apply(h))


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
centres = torch.randn(3, 8)
for step in range(100):
    y, d = torch.randint(3, (64,)), torch.randint(2, (64,))
    x = centres[y] + 0.7 * torch.randn(64, 8) + 0.5 * d[:, None]
    kind, domain = model(x)
    loss = F.cross_entropy(kind[d == 0], y[d == 0]) + F.cross_entropy(domain, d)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
