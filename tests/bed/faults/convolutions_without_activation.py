"""Convolutions in a row without an activation: the network sees no more than a mean.

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
for step in range(80):
    y = torch.randint(2, (32,))
    x = torch.randn(32, 1, 8, 8) * (0.5 + y)[:, None, None, None]
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
