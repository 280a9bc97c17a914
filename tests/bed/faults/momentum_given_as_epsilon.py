"""nn.BatchNorm1d(64, 0.8): the second argument is eps, and was meant as the momentum.

expect: norm-option
where: 1
source: [eriklindernoren/PyTorch-GAN#116](https://github.com/eriklindernoren/PyTorch-GAN/issues/116)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
m = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64, 0.8), nn.LeakyReLU(0.2), nn.Linear(64, 1))  # <- cause
o = torch.optim.Adam(m.parameters(), lr=1e-3)
for _ in range(12):
    x = torch.randn(32, 10)
    loss = F.mse_loss(m(x), x[:, :1] * 2)
    o.zero_grad()
    loss.backward()
    o.step()
print(loss.item())
