"""OneCycleLR is planned in batches and stepped once an epoch: the rate stays at a 25th of its maximum.

expect: scheduler-per-epoch
where: learning rate
source: [ageron/handson-mlp#28](https://github.com/ageron/handson-mlp/issues/28), [pytorch/pytorch#65417](https://github.com/pytorch/pytorch/issues/65417)
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
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
epochs = 6
batches = list(torch.randperm(len(x)).split(120))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=len(batches))
for epoch in range(epochs):
    for rows in batches:
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()  # <- cause
print("loss", round(loss.item(), 3))
