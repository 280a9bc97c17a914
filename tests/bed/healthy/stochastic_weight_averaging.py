"""Stochastic weight averaging with SWALR and an update of the batch norms at the end."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

torch.manual_seed(0)
centres = torch.randn(4, 8)
y = torch.randint(4, (640,))
x = centres[y] + torch.randn(640, 8)
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
average = AveragedModel(model)
scheduler = SWALR(optimizer, swa_lr=0.03, anneal_epochs=2)
for epoch in range(10):
    for rows in torch.randperm(640).split(64):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch >= 5:
        average.update_parameters(model)
        scheduler.step()
update_bn([x], average)
print("loss", round(F.cross_entropy(average(x), y).item(), 3))
