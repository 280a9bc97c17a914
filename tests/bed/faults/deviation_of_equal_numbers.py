"""A norm by hand divides by a deviation that is 0 for an empty sample: the root has no finite slope there.

expect: non-finite-backward
source: [pytorch/pytorch#4320](https://github.com/pytorch/pytorch/issues/4320), [mpariente/pytorch_stoi#7](https://github.com/mpariente/pytorch_stoi/issues/7)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16, bias=False), nn.Linear(16, 1)

    def forward(self, x):
        h = torch.tanh(self.fc1(x))
        deviation = (h - h.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()  # <- cause, right: deviation = ((h - h.mean(1, keepdim=True)).square().mean(1, keepdim=True) + 1e-5).sqrt()
        return self.fc2(h / (deviation + 1e-5))


model = Normed()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    x = torch.randn(32, 6)
    if step == 44:
        x[7] = 0.0
    loss = F.mse_loss(model(x), x[:, :1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
