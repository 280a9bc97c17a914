"""A layer is unfrozen for the second phase, and the optimizer was made of the parameters that were not frozen at first.

expect: not-in-optimizer
where: 0
source: PyTorch forum: [best practice for freezing layers](https://discuss.pytorch.org/t/best-practice-for-freezing-layers/58156)
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
model[0].requires_grad_(False)
optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-3)  # <- cause
for epoch in range(4):
    if epoch == 2:
        model[0].requires_grad_(True)
    for rows in torch.randperm(len(x)).split(90):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
