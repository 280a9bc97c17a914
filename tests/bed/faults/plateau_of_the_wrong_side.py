"""ReduceLROnPlateau(mode="max") gets a loss: while the loss falls, it sees a plateau and cuts the rate.

expect: scheduler-per-batch
where: learning rate
effects: stuck-update, update-too-small
source: [FunctionLab/selene#115](https://github.com/FunctionLab/selene/issues/115), [facebookresearch/fairseq#2205](https://github.com/facebookresearch/fairseq/issues/2205)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)  # <- cause, right: scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", patience=0)
for epoch in range(10):
    total = 0.0
    for rows in torch.randperm(1280).split(128):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    scheduler.step(total / 10)
print("loss", round(loss.item(), 3))
