"""Gradients accumulated over four micro-batches, each loss divided by four."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
STEPS = 4
for number in range(320):
    rows = torch.randint(len(x), (16,))
    loss = F.cross_entropy(model(x[rows]), y[rows]) / STEPS
    loss.backward()
    if (number + 1) % STEPS == 0:
        optimizer.step()
        optimizer.zero_grad()
print("loss", round(STEPS * loss.item(), 3))
