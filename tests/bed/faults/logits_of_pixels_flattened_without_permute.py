"""Scores (batch, classes, height, width) are flattened by view(-1, classes): neighbouring pixels of one class become the classes of one pixel.

expect: view-swaps-axes
source: [divamgupta/image-segmentation-keras#41](https://github.com/divamgupta/image-segmentation-keras/issues/41), [MIC-DKFZ/BraTS2017#15](https://github.com/MIC-DKFZ/BraTS2017/issues/15)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
classes = 3
model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(60):
    masks = torch.randint(0, classes, (8, 4, 4)).repeat_interleave(3, 1).repeat_interleave(3, 2)
    pictures = masks[:, None] - 1 + 0.3 * torch.randn(8, 1, 12, 12)
    scores = model(pictures)
    scores = scores.view(-1, classes)  # <- cause, right: scores = scores.permute(0, 2, 3, 1).reshape(-1, classes)
    loss = F.cross_entropy(scores, masks.view(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
