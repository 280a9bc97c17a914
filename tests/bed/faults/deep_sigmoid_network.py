"""Ten sigmoid layers: the gradient vanishes on its way back.

expect: vanishing-gradient
effects: update-too-small, saturated
where: *
source: Glorot and Bengio, 2010; Zhang et al., AUTOTRAINER, 2021 (vanishing gradient)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
act = nn.Sigmoid  # <- cause, right: act = nn.ReLU
layers = [nn.Linear(64, 32), act()]
for _ in range(9):
    layers += [nn.Linear(32, 32), act()]  # <- cause
    nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
model = nn.Sequential(*layers, nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(120):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
