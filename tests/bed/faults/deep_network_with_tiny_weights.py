"""Weights of deviation 0.01 in ten layers: the signal and its gradient vanish.

expect: vanishing-gradient
where: *
effects: update-too-small
source: He et al., Delving deep into rectifiers, 2015; Glorot and Bengio, 2010
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
layers = []
for number in range(10):
    layers += [nn.Linear(32, 32), nn.Tanh()]
    nn.init.normal_(layers[-2].weight, std=0.01)  # <- cause, right: nn.init.xavier_normal_(layers[-2].weight)
model = nn.Sequential(*layers, nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
w = torch.randn(32, 3)
for step in range(100):
    x = torch.randn(64, 32)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
