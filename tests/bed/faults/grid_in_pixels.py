"""grid_sample gets pixels, not [-1, 1]: it looks outside of the picture and reads zeros, without a gradient.

expect: zero-gradient
source: [ispc-lab/LiDAR4D#2](https://github.com/ispc-lab/LiDAR4D/pull/2), [pytorch/pytorch#4085](https://github.com/pytorch/pytorch/issues/4085)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Warp(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, moving, fixed):
        rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        where = torch.stack([columns, rows], -1) + 20 + self.shift(torch.cat([moving, fixed], 1)).permute(0, 2, 3, 1)
        where = where  # <- cause, right: where = 2 * (where - 20) / 15 - 1
        return F.grid_sample(moving, where, align_corners=True)  # <- cause


model = Warp()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(60):
    moving = F.avg_pool2d(torch.rand(8, 1, 18, 18), 3, stride=1)
    fixed = moving.roll(1, 3)
    loss = F.mse_loss(model(moving, fixed), fixed)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 5))
