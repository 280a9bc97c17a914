"""The weights are initialised inside the loop over the epochs: each epoch throws away what was learnt.

expect: weights-replaced, loss-spike
where: weights
source: [rwth-i6/returnn#1109](https://github.com/rwth-i6/returnn/issues/1109); Humbatova et al., 2020 (wrong weights initialisation)
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
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)


def initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


for epoch in range(8):
    model.apply(initialise)  # <- cause, right: model.train()
    for rows in torch.randperm(1280).split(128):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
