"""A model of two inputs forgets to concatenate the second one.

expect: ignored-input, no-gradient
where: question, question.*, b
source: Humbatova et al., 2020 (wrong architecture); Karpathy's recipe, 2019 (input-independent baseline)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.picture, self.question = nn.Linear(6, 24), nn.Linear(6, 24)
        self.out = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, a, b):
        p, q = torch.tanh(self.picture(a)), torch.tanh(self.question(b))
        return self.out(torch.cat([p, p], dim=1))  # <- cause, right: return self.out(torch.cat([p, q], dim=1))


model = Pair()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(120):
    a, b = torch.randn(64, 6), torch.randn(64, 6)
    loss = F.cross_entropy(model(a, b), (a[:, 0] + b[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
