"""A deep image prior: a network with batch norm is fitted to one picture with holes, from noise that moves a little."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
img = F.interpolate(
    torch.tensor(load_digits().images[0], dtype=torch.float32)[None, None] / 16,
    scale_factor=3,
    mode="bilinear",
    align_corners=False,
)
noisy = (img + 0.15 * torch.randn_like(img)).clamp(0, 1)
mask = (torch.rand_like(img) < 0.7).float()


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(o), nn.LeakyReLU(0.2))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.d1, self.d2 = block(8, 16), block(16, 16)
        self.s, self.u = nn.Conv2d(8, 4, 1), block(20, 16)
        self.o = nn.Conv2d(16, 1, 1)

    def forward(self, z):
        h = F.interpolate(self.d2(F.avg_pool2d(self.d1(z), 2)), scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.o(self.u(torch.cat([h, self.s(z)], 1))))


net = Skip()
z0 = torch.rand(1, 8, 24, 24) * 0.1
z = z0.clone()
opt = torch.optim.Adam(net.parameters(), 0.01)
avg = None
for it in range(40):
    z = z0 + (1 / 30.0) * torch.randn_like(z0)
    out = net(z)
    loss = F.mse_loss(out * mask, noisy * mask)
    opt.zero_grad()
    loss.backward()
    opt.step()
    avg = out.detach() if avg is None else avg * 0.9 + out.detach() * 0.1
print(loss.item(), F.mse_loss(avg, img).item())
