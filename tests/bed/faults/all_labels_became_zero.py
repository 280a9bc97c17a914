"""A cast turns labels of 0.1 to 0.9 into integers: all are 0.

expect: one-class
where: y*, labels*, getitem*, target*, loss, classes*
source: Islam et al., 2019 (data bugs: wrong type conversion); Humbatova et al., 2020
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6
scores = torch.tensor(labels) / 10
classes = scores.long()  # <- cause, right: classes = (scores * 10).round().long()
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), classes[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == torch.tensor(labels)).float().mean().item(), 3))
