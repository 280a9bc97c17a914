"""A sigmoid as last layer of a regression whose targets are between -1 and 1.

expect: targets-out-of-range, unfittable-labels
source: Nikanjam et al., NeuraLint, 2021; Wardat et al., DeepLocalize, 2021 (a regression of sin x on Stack Overflow)
"""

import math

import torch
from torch import nn

torch.manual_seed(0)


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(1, 40)
        self.fc2 = nn.Linear(40, 1)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        return torch.sigmoid(self.fc2(x))  # <- cause, right: return self.fc2(x)


net = Sine()
optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
mse = nn.MSELoss()
for step in range(120):
    x = (torch.rand(64, 1) - 0.5) * 2 * math.pi
    optimizer.zero_grad()
    loss = mse(net(x), torch.sin(x))  # <- cause
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
