"""A map of classes is resized with bilinear interpolation: at borders appear classes that nobody labelled.

expect: classes-blended
where: lab
source: [divamgupta/image-segmentation-keras#11](https://github.com/divamgupta/image-segmentation-keras/issues/11), [shekkizh/FCN.tensorflow#4](https://github.com/shekkizh/FCN.tensorflow/issues/4)
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)

def sample(n=8, s=32):
    yy, xx = torch.meshgrid(torch.arange(s), torch.arange(s), indexing="ij")
    lab = torch.zeros(n, s, s, dtype=torch.long)
    for k, cls in enumerate((2, 5)):
        c = torch.randint(6, s - 6, (n, 2, 1, 1))
        r = torch.randint(3, 7, (n, 1, 1))
        lab[((yy - c[:, 0]) ** 2 + (xx - c[:, 1]) ** 2) < r ** 2] = cls
    img = F.one_hot(lab, 6).float()[..., [2, 5]].permute(0, 3, 1, 2) + 0.3 * torch.randn(n, 2, s, s)
    return img, lab

net = nn.Sequential(nn.Conv2d(2, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 6, 1))
opt = torch.optim.Adam(net.parameters(), 5e-3)
for step in range(80):
    img, lab = sample()
    logits = net(img)                                   # at half the resolution
    small = F.interpolate(lab[:, None].float(), size=logits.shape[-2:], mode="bilinear")  # <- cause, right: small = F.interpolate(lab[:, None].float(), size=logits.shape[-2:], mode="nearest")
    loss = F.cross_entropy(logits, small[:, 0].long())
    opt.zero_grad(); loss.backward(); opt.step()
print("ce", loss.item())
