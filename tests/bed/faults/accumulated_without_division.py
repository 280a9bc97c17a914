"""Gradients of 16 micro-batches are summed, and the loss is not divided by 16.

expect: micro-batch-scale
effects: update-too-large, learning-rate-too-high, loss-spike, unit-off, zero-gradient
source: [hirofumi0810/neural_sp#168](https://github.com/hirofumi0810/neural_sp/issues/168), [agokrani/distillKitPlus#5](https://github.com/agokrani/distillKitPlus/issues/5)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
for step in range(60):
    optimizer.zero_grad()
    for _ in range(16):
        rows = torch.randint(len(x), (8,))
        loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause, right: loss = F.cross_entropy(model(x[rows]), y[rows]) / 16
        loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
