"""LoRA with both factors at 0: each is the factor of the other's gradient, so neither ever moves.

expect: zero-gradient, symmetric-units
where: *.a, *.b
source: [circle-hit/SAPT#11](https://github.com/circle-hit/SAPT/issues/11), [nvidia-cosmos/cosmos-predict2.5#15](https://github.com/nvidia-cosmos/cosmos-predict2.5/pull/15)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Adapted(nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.zeros(rank, base.in_features))  # <- cause, right: self.a = nn.Parameter(torch.randn(rank, base.in_features) / 4)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


model = nn.Sequential(Adapted(nn.Linear(16, 32)), nn.Tanh(), Adapted(nn.Linear(32, 4)))
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
teacher = torch.randn(16, 4)
for step in range(80):
    x = torch.randn(64, 16)
    loss = F.cross_entropy(model(x), (x @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
