"""A Dice loss gets logits, without a sigmoid: it has no bound.

expect: scores-in-dice
where: c3
source: [jakeret/tf_unet#15](https://github.com/jakeret/tf_unet/issues/15)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Seg(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1)
        self.c3 = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.c3(F.relu(self.c2(F.relu(self.c1(x)))))


def dice_loss(pred, target, smooth=1.0):
    intersection = (pred * target).sum()  # <- cause
    return 1 - (2 * intersection + smooth) / (pred.sum() + target.sum() + smooth)  # <- cause


net = Seg()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(25):
    x = torch.randn(8, 1, 16, 16)
    mask = (F.avg_pool2d(x, 3, 1, 1) > 0.3).float()
    loss = dice_loss(net(x), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
