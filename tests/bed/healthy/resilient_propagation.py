"""Rprop on the whole data set at once: the same batch in every step, and only signs of gradients."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_iris
from torch import nn

torch.manual_seed(0)
features, labels = load_iris(return_X_y=True)
x = torch.tensor(features, dtype=torch.float32)
x, y = (x - x.mean(0)) / x.std(0), torch.tensor(labels)
model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 3))
optimizer = torch.optim.Rprop(model.parameters(), lr=1e-3)
for step in range(100):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
