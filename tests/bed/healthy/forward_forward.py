"""The forward-forward algorithm: each layer has a loss and an optimizer of its own."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
layers = nn.ModuleList([nn.Linear(74, 128), nn.Linear(128, 128)])
optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-2) for layer in layers]


def with_label(pictures, labels):
    return torch.cat([pictures, 2 * F.one_hot(labels, 10)], 1)


for step in range(80):
    rows = torch.randint(len(x), (128,))
    wrong = (y[rows] + torch.randint(1, 10, (128,))) % 10
    good, bad = with_label(x[rows], y[rows]), with_label(x[rows], wrong)
    for layer, optimizer in zip(layers, optimizers):
        good, bad = (F.relu(layer(F.normalize(each))) for each in (good, bad))
        goodness = torch.cat([1 - good.square().mean(1), bad.square().mean(1) - 1])
        loss = F.softplus(goodness).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        good, bad = good.detach(), bad.detach()
print("loss", round(loss.item(), 3))
