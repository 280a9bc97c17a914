"""A gradient hook, made to freeze a part, returns zeros for the whole weight.

expect: gradient-changed, zero-gradient
where: 0.weight
source: [pytorch/pytorch#38581](https://github.com/pytorch/pytorch/issues/38581) (a hook that returns zeros); PyTorch's documentation of register_hook
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
kept = torch.ones(32, 1)
kept[16:] = 0
kept = kept * 0  # <- cause, right: kept = kept * 1
model[0].weight.register_hook(lambda gradient: gradient * kept)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(8, 1)
for step in range(80):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.sin(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
