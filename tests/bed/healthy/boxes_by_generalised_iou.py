"""Boxes as centre and size, L1 plus GIoU of the corners."""

import torch
import torch.nn as nn

torch.manual_seed(0)


def corners(b):
    c, s = b[:, :2], b[:, 2:]
    return torch.cat([c - s / 2, c + s / 2], 1)


def giou(a, b):
    def area(z):
        return (z[:, 2] - z[:, 0]) * (z[:, 3] - z[:, 1])

    wh = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
    inter = wh.prod(1)
    union = area(a) + area(b) - inter
    hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return inter / union - (hull - union) / hull


model = nn.Sequential(
    nn.Conv2d(1, 16, 3, 2, 1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, 2, 1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(32 * 36, 64),
    nn.ReLU(),
    nn.Linear(64, 4),
    nn.Sigmoid(),
)


def make(n):
    c, s = torch.rand(n, 2) * 0.5 + 0.25, torch.rand(n, 2) * 0.3 + 0.15
    g = (torch.arange(24) + 0.5) / 24
    inx = ((g - c[:, :1]).abs() < s[:, :1] / 2).float()
    iny = ((g - c[:, 1:]).abs() < s[:, 1:] / 2).float()
    return (iny[:, :, None] * inx[:, None, :])[:, None], torch.cat([c, s], 1)


optim = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
for step in range(100):
    img, boxes = make(32)
    pred = model(img)
    loss = 5 * nn.functional.l1_loss(pred, boxes) + 2 * (1 - giou(corners(pred), corners(boxes))).mean()
    optim.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10)
    optim.step()
print("loss", loss.item())
