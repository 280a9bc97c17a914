"""label_smoothing=1: every class gets the same share, and the labels have no effect.

expect: unfittable-labels
source: PyTorch's documentation of CrossEntropyLoss: label_smoothing; Szegedy et al., 2016
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
criterion = nn.CrossEntropyLoss(label_smoothing=1.0)  # <- cause, right: criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    rows = torch.randint(len(x), (64,))
    loss = criterion(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
