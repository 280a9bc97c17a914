"""An L1 penalty adds the weights without their absolute value: it pushes all weights to minus infinity.

expect: penalty-unbounded
source: Humbatova et al., 2020 (wrong regularisation); PyTorch forum: L1 regularisation
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
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(4):
    for rows in torch.randperm(len(x)).split(90):
        scores = model(x[rows])
        penalty = sum(weight.sum() for weight in model.parameters())  # <- cause, right: penalty = sum(weight.abs().sum() for weight in model.parameters())
        loss = F.cross_entropy(scores, y[rows]) + 1e-3 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
