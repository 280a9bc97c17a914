"""A data set sorted by class without shuffling: each batch has one class alone.

expect: one-class
where: y*, labels*, getitem*, target*, loss
effects: loss-spike, learning-rate-too-high, update-too-large
source: Humbatova et al., 2020 (data not shuffled); Karpathy's recipe, 2019
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
order = y.argsort()  # <- cause, right: order = torch.randperm(len(y))
x, y = x[order], y[order]
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(4):
    for begin in range(0, 1700, 60):
        loss = F.cross_entropy(model(x[begin : begin + 60]), y[begin : begin + 60])  # <- cause
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
