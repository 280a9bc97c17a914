"""The standard deviation of a group whose members are all equal has no finite gradient.

expect: non-finite-backward
source: [pytorch/pytorch#4320](https://github.com/pytorch/pytorch/issues/4320)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        h = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-5)  # <- cause, right: h = F.layer_norm(h, (16,))
        return self.fc2(h)


model = Normed()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for step in range(80):
    x = torch.randn(32, 6)
    y = x[:, :1]
    if step == 40:
        with torch.no_grad():
            model.fc1.bias.sub_(2.0)
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
