"""An exponential schedule made for epochs is stepped after each batch: the rate is gone after 100 batches.

expect: scheduler-per-batch
where: optimizer, *.weight, learning rate, group *
effects: stuck-update, update-too-small, learning-rate-jump
source: [leftthomas/SRGAN#94](https://github.com/leftthomas/SRGAN/issues/94), [ivadomed/ivadomed#55](https://github.com/ivadomed/ivadomed/pull/55)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
for epoch in range(4):
    for rows in torch.randperm(len(x)).split(64):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()  # <- cause, right: pass
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
