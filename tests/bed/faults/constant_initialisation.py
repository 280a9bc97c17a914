"""All weights begin at 0.1: every unit of a layer stays the same.

expect: symmetric-units
where: 0*, 2*, fc*
source: Cao et al., DeepFD, 2022; Humbatova et al., 2020 (wrong weight initialisation); Goodfellow et al., 2016, 8.4
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 16, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
for parameter in model.parameters():
    nn.init.constant_(parameter, 0.1)  # <- cause, right: nn.init.normal_(parameter, std=0.1)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
