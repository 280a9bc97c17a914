"""A linear regression on raw areas up to 3,000: the rate that suits inputs near 1 diverges to NaN.

expect: input-not-normalised
where: input*, x*, area*, batch*, getitem*
effects: non-finite-forward, learning-rate-too-high, update-too-large, loss-spike, non-finite-backward
source: Wardat et al., DeepLocalize, 2021; Stack Overflow on linear regressions that return NaN; Islam et al., 2019
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
areas = 500 + 2500 * torch.rand(400, 1)  # <- cause, right: areas = torch.randn(400, 1)
wanted = (areas - areas.mean()) / areas.std()
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(100):
    rows = torch.randint(400, (32,))
    x = areas[rows]  # <- cause
    loss = F.mse_loss(model(x), wanted[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
