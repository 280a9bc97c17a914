"""nn.LayerNorm(1) over a single feature: x minus its own mean is 0, whatever x is.

expect: batch-norm-of-one
where: 3
effects: zero-gradient
source: [pytorch/pytorch#108956](https://github.com/pytorch/pytorch/issues/108956)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.LayerNorm(1))  # <- cause, right: net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
w = torch.randn(6, 1)
for step in range(60):
    x = torch.randn(32, 6)
    loss = F.mse_loss(net(x), torch.tanh(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
