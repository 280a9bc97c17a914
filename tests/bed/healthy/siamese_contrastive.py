"""A siamese network with a contrastive loss over pairs."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(100):
    a, b = torch.randint(len(x), (2, 64))
    same = (y[a] == y[b]).float()
    distance = F.pairwise_distance(net(x[a]), net(x[b]))
    loss = (same * distance**2 + (1 - same) * F.relu(1 - distance) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
