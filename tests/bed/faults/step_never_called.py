"""`optimizer.step` without its parentheses: no step is ever taken.

expect: step-not-called
where: optimizer
source: [zhaoyuzhi/deepfillv2#6](https://github.com/zhaoyuzhi/deepfillv2/issues/6); Humbatova et al., 2020 (missing step)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(8, 1)
for step in range(80):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.tanh(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step  # <- cause, right: optimizer.step()
print("loss", round(loss.item(), 3))
