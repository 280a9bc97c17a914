"""After an edit, step() stands under a condition that holds for ten batches only.

expect: step-not-called
where: optimizer
effects: accumulated-gradient
source: [zhaoyuzhi/deepfillv2#6](https://github.com/zhaoyuzhi/deepfillv2/issues/6) (a missing step)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
for step in range(110):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), x @ w)
    optimizer.zero_grad()
    loss.backward()  # <- cause
    if step < 10:  # <- cause, right: if step >= 0:
        optimizer.step()  # <- cause
print("loss", round(loss.item(), 3))
