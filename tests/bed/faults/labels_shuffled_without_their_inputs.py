"""Inputs are shuffled and labels are not, so the labels mean nothing.

expect: unfittable-labels
where: *
source: Humbatova et al., 2020 (shuffling of data and labels apart); Karpathy's recipe, 2019
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
y = torch.arange(512) % 4
x = torch.randn(4, 3).round()[y]
x = x[torch.randperm(512)]  # <- cause, right: pass
model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    rows = torch.randint(512, (128,))
    loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
