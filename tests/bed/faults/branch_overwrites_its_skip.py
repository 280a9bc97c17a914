"""The first ReLU of a residual branch works in place, so the skip connection adds what it left.

expect: skip-overwritten
where: *.conv.0
source: [rosinality/vq-vae-2-pytorch#60](https://github.com/rosinality/vq-vae-2-pytorch/issues/60)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

torch.manual_seed(1)

class ResBlock(nn.Module):
    def __init__(self, in_channel, channel):
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(inplace=True),  # <- cause, right: nn.ReLU(),
            nn.Conv2d(in_channel, channel, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channel, in_channel, 1),
        )

    def forward(self, input):
        out = self.conv(input)
        out += input
        return out

class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 16, 4, stride=2, padding=1), ResBlock(16, 8), ResBlock(16, 8), nn.Conv2d(16, 4, 1))
        self.dec = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), ResBlock(16, 8), ResBlock(16, 8), nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1))

    def forward(self, x):
        return self.dec(self.enc(x))

imgs = torch.tensor(load_digits().images).float()[:, None] / 8 - 1
model = AE()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
for i in range(80):
    img = imgs[torch.randint(len(imgs), (64,))]
    model.zero_grad()
    loss = F.mse_loss(model(img), img)
    loss.backward()
    optimizer.step()
print("mse", loss.item())
