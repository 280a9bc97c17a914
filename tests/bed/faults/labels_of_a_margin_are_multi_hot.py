"""MultiLabelMarginLoss expects the indices of the labels, padded with -1, and gets zeros and ones.

expect: targets-out-of-range
source: [pytorch/pytorch#15863](https://github.com/pytorch/pytorch/issues/15863)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
truth = torch.randn(16, 6)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 6))
criterion = nn.MultiLabelMarginLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(64, 16)
    labels = (x @ truth > 2).long()
    loss = criterion(model(x), labels)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
