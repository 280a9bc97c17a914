"""A learned gate is compared with a threshold; the comparison has no gradient.

expect: no-gradient
where: gate.*
source: [wonbeomjang/mobile-hair-segmentation-pytorch#3](https://github.com/wonbeomjang/mobile-hair-segmentation-pytorch/issues/3) (an operation without a gradient)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(12, 12)
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        mask = (torch.sigmoid(self.gate(x)) > 0.5).float()  # <- cause, right: mask = torch.sigmoid(self.gate(x))
        return self.out(x * mask)


model = Gated()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(120):
    x = torch.randn(64, 12)
    y = torch.relu(x).sum(1, keepdim=True) - 4
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
