"""IoU loss of raw outputs in several classes, summed over the pixels of each class.

expect: scores-in-dice
where: out
source: [jakeret/tf_unet#15](https://github.com/jakeret/tf_unet/issues/15)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
o = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(15):
    x = torch.randn(4, 1, 16, 16)
    t = F.one_hot((x[:, 0] * 2).long().clamp(0, 2), 3).permute(0, 3, 1, 2).float()
    out = net(3 * x)
    inter = (out * t).sum((2, 3))
    union = out.sum((2, 3)) + t.sum((2, 3)) - inter
    loss = 1 - ((inter + 1) / (union + 1)).mean()  # <- cause
    o.zero_grad()
    loss.backward()
    o.step()
print(loss.item())
