"""An IoU loss of boxes that do not overlap is 1 whatever they are, and has no gradient.

expect: zero-gradient
source: Rezatofighi et al., Generalized intersection over union, 2019; [AlexeyAB/darknet#5429](https://github.com/AlexeyAB/darknet/issues/5429)
"""

import torch
from torch import nn

torch.manual_seed(3)

def iou_loss(pred, target):
    x1 = torch.max(pred[:, 0], target[:, 0]); y1 = torch.max(pred[:, 1], target[:, 1])
    x2 = torch.min(pred[:, 2], target[:, 2]); y2 = torch.min(pred[:, 3], target[:, 3])
    inter = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)  # <- cause
    ap = (pred[:, 2] - pred[:, 0]).clamp(min=0) * (pred[:, 3] - pred[:, 1]).clamp(min=0)
    at = (target[:, 2] - target[:, 0]) * (target[:, 3] - target[:, 1])
    return (1 - inter / (ap + at - inter + 1e-6)).mean()

# crops of 64 x 64 pixels; the box of the object in pixels
net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
proj = torch.randn(4, 20) / 40
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for it in range(100):
    xy = torch.rand(32, 2) * 30 + 12
    wh = torch.rand(32, 2) * 12 + 6
    boxes = torch.cat([xy, xy + wh], 1)
    feats = torch.tanh((boxes - 32) @ proj) + 0.02 * torch.randn(32, 20)
    loss = iou_loss(net(feats), boxes)
    opt.zero_grad()
    loss.backward()
    opt.step()
print("iou loss", loss.item())
