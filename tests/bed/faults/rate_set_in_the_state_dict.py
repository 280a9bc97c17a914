"""The learning rate is lowered in `optimizer.state_dict()`, which is a copy: the rate stays.

expect: setting-without-effect
source: [pytorch/examples#64](https://github.com/pytorch/examples/issues/64)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def adjust(epoch):
    rate = 0.5 * 0.1 ** (epoch // 2)
    for group in optimizer.state_dict()["param_groups"]:  # <- cause, right: for group in optimizer.param_groups:
        group["lr"] = rate


for epoch in range(5):
    adjust(epoch)
    for rows in torch.randperm(len(x)).split(90):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
