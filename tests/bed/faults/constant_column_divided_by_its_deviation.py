"""Pixels that are 0 in all pictures are divided by their deviation of 0.

expect: non-finite-forward
where: input
source: Humbatova et al., 2020 (wrong preprocessing); scikit-learn documentation of StandardScaler (constant features)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
x = (x - x.mean(0)) / x.std(0)  # <- cause, right: x = (x - x.mean(0)) / (x.std(0) + 1e-6)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    for rows in torch.randperm(len(x)).split(64):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
