"""The largest score is compared with the label: `max` returns values and indices, and the wrong one is taken.

expect: score-as-class
source: PyTorch documentation of torch.max; Humbatova et al., 2020 (wrong loss)
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
        predicted, _ = model(x[rows]).max(1)  # <- cause
        loss = F.mse_loss(predicted, y[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
