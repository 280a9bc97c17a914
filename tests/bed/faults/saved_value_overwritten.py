"""`+=` on the output of a sigmoid overwrites what its backward needs.

expect: backward-failed
source: [pytorch/pytorch#39141](https://github.com/pytorch/pytorch/issues/39141) (in-place operations and saved values)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x):
        gate = torch.sigmoid(self.fc1(x))
        gate += 0.1  # <- cause, right: gate = gate + 0.1
        return self.fc2(gate)


model = Gate()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(60):
    x = torch.randn(32, 4)
    loss = F.mse_loss(model(x), x[:, :1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
