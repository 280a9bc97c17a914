"""A Dice loss without smoothing: a batch without foreground, predicted as background, divides 0 by 0.

expect: non-finite-forward
source: [neuronets/nobrainer#8](https://github.com/neuronets/nobrainer/issues/8), [Project-MONAI/MONAI#120](https://github.com/Project-MONAI/MONAI/issues/120)
"""

import torch
from torch import nn

torch.manual_seed(0)


def dice(probabilities, mask):
    kept = (probabilities > 0.05) * probabilities
    overlap = (kept * mask).sum()
    return 1 - 2 * overlap / (kept.sum() + mask.sum())  # <- cause, right: return 1 - (2 * overlap + 1) / (kept.sum() + mask.sum() + 1)


model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
nn.init.constant_(model[-1].bias, -1.0)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(90):
    picture = torch.rand(4, 1, 12, 12) * 0.3
    mask = torch.zeros_like(picture)
    if step % 20 == 19:
        picture = torch.full_like(picture, -9.0)
    else:
        mask[..., 3:8, 3:8] = 1
        picture[..., 3:8, 3:8] += 0.7
    loss = dice(torch.sigmoid(model(picture)), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
