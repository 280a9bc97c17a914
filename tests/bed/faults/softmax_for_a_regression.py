"""A regression of three numbers ends in a softmax: its outputs always add up to 1, the targets do not.

expect: targets-out-of-range
source: [MATLAB answers](https://imathworks.com/matlab/matlab-can-i-use-softmaxlayer-for-regression-network/), Stack Overflow 63909566
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3), nn.Softmax(dim=1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    x = torch.rand(64, 6)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2], 1 - x[:, 3] * x[:, 4]], 1)
    loss = F.mse_loss(model(x), y)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
