"""A small U-Net with skip connections, trained with BCE and a Dice loss."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(2, b), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.up = block(1, 8), block(8, 16), block(24, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        return self.out(self.up(torch.cat([a, F.interpolate(b, scale_factor=2)], dim=1)))


model = UNet()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))
for step in range(60):
    centre = 3 + 10 * torch.rand(16, 2, 1, 1)
    mask = ((grid - centre).square().sum(1, keepdim=True) < 12).float()
    picture = mask + 0.5 * torch.randn_like(mask)
    logits = model(picture)
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    loss = F.binary_cross_entropy_with_logits(logits, mask) + dice.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
