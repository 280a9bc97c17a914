"""A layer is created inside forward: new random weights at every call, and none of them is trained.

expect: not-in-optimizer
where: Linear.*
effects: no-gradient
source: [graykode/nlp-tutorial#29](https://github.com/graykode/nlp-tutorial/issues/29)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = F.relu(self.conv(x)).flatten(1)
        return nn.Linear(x.shape[1], 3)(x)  # <- cause, right: return self.fc(x)


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
waves = torch.randn(3, 1, 16)
for step in range(60):
    y = torch.randint(3, (32,))
    loss = F.cross_entropy(net(waves[y] + 0.3 * torch.randn(32, 1, 16)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
