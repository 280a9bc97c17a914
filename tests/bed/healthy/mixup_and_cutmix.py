"""Mixup and CutMix in turn, with smoothed labels and a cosine schedule."""

import numpy as np
import torch
import torch.nn as nn
from sklearn.datasets import load_digits

torch.manual_seed(0)
np.random.seed(0)
d = load_digits()
X = torch.tensor(d.images, dtype=torch.float32)[:, None] / 16
Y = torch.tensor(d.target)
net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Dropout(0.1),
    nn.Linear(32, 10),
)
crit = nn.CrossEntropyLoss(label_smoothing=0.1)
opt = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
sch = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)


def rand_bbox(size, lam):
    W, H = size[2], size[3]
    r = np.sqrt(1 - lam)
    cw, ch = int(W * r), int(H * r)
    cx, cy = np.random.randint(W), np.random.randint(H)
    return max(cx - cw // 2, 0), max(cy - ch // 2, 0), min(cx + cw // 2, W), min(cy + ch // 2, H)


for it in range(40):
    i = torch.randint(len(X), (64,))
    x, y = X[i].clone(), Y[i]
    lam = np.random.beta(1, 1)
    perm = torch.randperm(64)
    ya, yb = y, y[perm]
    if np.random.rand() < 0.5:
        x = lam * x + (1 - lam) * x[perm]
    else:
        a, b, c, e = rand_bbox(x.shape, lam)
        x[:, :, a:c, b:e] = x[perm, :, a:c, b:e]
        lam = 1 - (c - a) * (e - b) / 64
    out = net(x)
    loss = lam * crit(out, ya) + (1 - lam) * crit(out, yb)
    opt.zero_grad()
    loss.backward()
    opt.step()
    sch.step()
print(loss.item())
