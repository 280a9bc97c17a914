"""torch.sign as activation: its gradient is 0 everywhere.

expect: zero-gradient
where: fc1.*
source: PyTorch forum, "Circumventing an indifferentiability problem", April 2019
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(10, 64)
        self.fc2 = nn.Linear(64, 2)

    def forward(self, x):
        h = torch.sign(self.fc1(x))  # <- cause, right: h = torch.tanh(self.fc1(x))
        return self.fc2(h)


model = Binary()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(120):
    x = torch.randn(64, 10)
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
