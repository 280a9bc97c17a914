"""Adam with betas=(0.999, 0.9).

expect: optimizer-option
where: Adam
source: Kingma and Ba, Adam, 2015: beta1 squared is below the root of beta2
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
m = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
o = torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.999, 0.9))  # <- cause
for _ in range(12):
    x = torch.randn(32, 10)
    loss = F.mse_loss(m(x), x[:, :1] * 2)
    o.zero_grad()
    loss.backward()
    o.step()
print(loss.item())
