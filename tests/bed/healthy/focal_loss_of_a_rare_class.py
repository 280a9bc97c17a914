"""A focal loss per sample, on a rare class, with class weights."""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)


def focal(logits, y, weight, gamma=2.0):
    ce = F.cross_entropy(logits, y, reduction="none")
    pt = torch.exp(-ce)
    return (weight[y] * (1 - pt) ** gamma * ce).mean()


X = torch.randn(3000, 12)
y = ((X[:, 0] + 0.5 * X[:, 1] ** 2) > 2.2).long()
counts = torch.bincount(y).float()
weight = counts.sum() / (2 * counts)
net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 2))
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(100):
    i = torch.randint(3000, (128,))
    loss = focal(net(X[i]), y[i], weight)
    opt.zero_grad()
    loss.backward()
    opt.step()
print("loss", loss.item())
