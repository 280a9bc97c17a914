"""`loss = ...` instead of `loss += ...`: the second loss replaces the first, whose head gets no gradient.

expect: no-gradient, ignored-input
where: classes.*
source: Humbatova et al., 2020 (wrong loss function calculation); [samvanstroud/hepattn#23](https://github.com/samvanstroud/hepattn/pull/23)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.classes, self.size = nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, x):
        hidden = self.body(x)
        return self.classes(hidden), self.size(hidden)[:, 0]


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(10, 4)
for step in range(80):
    x = torch.randn(64, 10)
    logits, size = model(x)
    loss = F.cross_entropy(logits, (x @ w).argmax(1))
    loss = F.mse_loss(size, x.norm(dim=1))  # <- cause, right: loss = loss + F.mse_loss(size, x.norm(dim=1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("cross entropy", round(F.cross_entropy(logits, (x @ w).argmax(1)).item(), 3))
