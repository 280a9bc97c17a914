"""Dropout(0.98), meant as the share to keep: 98 % of the units are off.

expect: dropout-rate
where: 2
effects: unit-off
source: [hassony2/kinetics_i3d_pytorch#6](https://github.com/hassony2/kinetics_i3d_pytorch/issues/6), [hunkim/DeepLearningZeroToAll#204](https://github.com/hunkim/DeepLearningZeroToAll/issues/204)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Dropout(0.98),  # <- cause, right: nn.Dropout(0.02),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
