"""Batch norm with batches of one sample.

expect: batch-norm-of-one
where: 1, norm*
effects: learning-rate-too-high, loss-spike, update-too-large, no-gradient, zero-gradient
source: Wu and He, Group normalization, 2018; [wolny/pytorch-3dunet#53](https://github.com/wolny/pytorch-3dunet/issues/53) (comment on a batch of 1)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 0.6
y = torch.tensor(labels)
SIZE = 1  # <- cause, right: SIZE = 16
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(120):
    rows = torch.randint(len(x), (SIZE,))
    loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print("loss", round(F.cross_entropy(model(x), y).item(), 3))
