"""A mask of a picture is 0 or 255, and BCEWithLogitsLoss expects 0 or 1: the loss falls below 0 without end.

expect: targets-out-of-range
where: mask
source: [milesial/Pytorch-UNet#78](https://github.com/milesial/Pytorch-UNet/issues/78), [milesial/Pytorch-UNet#65](https://github.com/milesial/Pytorch-UNet/issues/65)
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for step in range(80):
    picture = torch.rand(8, 1, 12, 12) * 0.5
    mask = torch.zeros(8, 1, 12, 12)
    for each, corner in enumerate(torch.randint(0, 7, (8, 2)).tolist()):
        mask[each, 0, corner[0] : corner[0] + 5, corner[1] : corner[1] + 5] = 255  # <- cause, right: mask[each, 0, corner[0] : corner[0] + 5, corner[1] : corner[1] + 5] = 1
    picture = picture + 0.5 * (mask > 0)
    loss = criterion(model(picture), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 2))
