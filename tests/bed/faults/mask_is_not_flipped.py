"""Pictures and masks get random flips of their own: every second mask is of another picture.

expect: targets-of-others
source: [albumentations-team/albumentations#1056](https://github.com/albumentations-team/albumentations/issues/1056)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def flip(batch):
    chosen = torch.rand(len(batch)) < 0.5
    return torch.where(chosen[:, None, None, None], batch.flip(-1), batch)


model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    corner = torch.randint(0, 8, (32, 2))
    rows = torch.arange(16)
    inside = (rows >= corner[:, :1]) & (rows < corner[:, :1] + 6)
    across = (rows >= corner[:, 1:]) & (rows < corner[:, 1:] + 6)
    masks = (inside[:, :, None] & across[:, None, :]).float()[:, None]
    pictures = masks + 0.3 * torch.randn_like(masks)
    pictures, masks = flip(pictures), flip(masks)  # <- cause
    loss = F.binary_cross_entropy_with_logits(model(pictures), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
