"""zero_grad() stands between backward() and step(): the optimizer finds nothing.

expect: nothing-to-step, gradient-changed
where: *.weight, *.bias
source: [lucidrains/byol-pytorch#93](https://github.com/lucidrains/byol-pytorch/issues/93)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), x @ w)
    loss.backward()
    optimizer.zero_grad()  # <- cause, right: pass
    optimizer.step()  # <- cause, right: optimizer.step(); optimizer.zero_grad()
print("loss", round(loss.item(), 3))
