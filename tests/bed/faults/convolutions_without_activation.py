"""Convolutions in a row, and relu only after the last one.

expect: no-activation
where: conv1*, conv2*, conv3*
source: Humbatova et al., 2020 (missing activation function); Nikanjam et al., NeuraLint, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv2(self.conv1(x))  # <- cause, right: x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.conv3(x)  # <- cause, right: x = F.relu(self.conv3(x))
        return self.out(x.mean((2, 3)))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    x = torch.randn(32, 1, 8, 8)
    y = torch.randint(2, (32,))
    x[y == 1] = x[y == 1].sign() * 1.6 * torch.rand_like(x[y == 1])
    x[y == 1, :, ::2] *= -1
    x[y == 1] = x[y == 1].abs() * torch.randint(0, 2, (int((y == 1).sum()), 1, 8, 8)).mul(2).sub(1) * 1.3
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
