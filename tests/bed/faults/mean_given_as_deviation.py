"""nn.init.normal_(weight, 0.02) sets the mean; the deviation stays 1.

expect: initial-loss
source: [aiUIUC/pyAIUtils#25](https://github.com/aiUIUC/pyAIUtils/issues/25)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
for module in model:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.02)  # <- cause, right: nn.init.normal_(module.weight, 0, 0.02)
        nn.init.zeros_(module.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(4):
    for rows in torch.randperm(len(x)).split(90):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
