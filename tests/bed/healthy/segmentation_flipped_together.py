"""Binary segmentation, flips of picture and mask together, BCE plus Dice."""

import random

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

random.seed(0)
torch.manual_seed(0)


class Blobs(Dataset):
    def __init__(self, n=192, size=24):
        yy, xx = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        self.items = []
        for _ in range(n):
            cx, cy, r = random.randint(4, size - 5), random.randint(4, size - 5), random.randint(2, 5)
            mask = ((xx - cx) ** 2 + (yy - cy) ** 2 <= r * r).float()
            self.items.append(((mask * 0.8 + 0.2 * torch.rand(size, size))[None], mask[None]))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        img, mask = self.items[i]
        for axis in (-1, -2):
            if random.random() > 0.5:
                img, mask = img.flip(axis), mask.flip(axis)
        return (img - 0.5) / 0.5, mask


def dice_loss(p, t, eps=1.0):
    inter = (p * t).sum((1, 2, 3))
    return (1 - (2 * inter + eps) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)) + eps)).mean()


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


ds = Blobs()
net = nn.Sequential(block(1, 12), block(12, 12), nn.Conv2d(12, 1, 1))
opt = torch.optim.Adam(net.parameters(), 1e-2)
for epoch in range(12):
    for img, mask in DataLoader(ds, batch_size=32, shuffle=True):
        logits = net(img)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, mask) + dice_loss(logits.sigmoid(), mask)
        opt.zero_grad()
        loss.backward()
        opt.step()
print("loss", loss.item())
