"""A ReLU stands before the sigmoid of the loss: no probability is below 0.5, so a label of 0 is out of reach.

expect: relu-on-scores
source: Schoop et al., UMLAUT, 2021; Humbatova et al., 2020 (wrong type of activation function)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(10, 32)
        self.two = nn.Linear(32, 1)

    def forward(self, x):
        x = F.relu(self.one(x))
        return F.relu(self.two(x))  # <- cause, right: return self.two(x)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(64, 10)
    y = (x[:, :1] + x[:, 1:2] > 0).float()
    loss = F.binary_cross_entropy_with_logits(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
