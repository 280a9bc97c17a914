"""LambdaLR gets a function that returns the rate; PyTorch multiplies it with the rate: 1e-8.

expect: update-too-small
where: *.weight
source: [LambdaLR](https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-4 * 0.99**step)  # <- cause, right: schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1000 * 0.99**step)
w = torch.randn(8, 3)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
print("loss", round(loss.item(), 3))
