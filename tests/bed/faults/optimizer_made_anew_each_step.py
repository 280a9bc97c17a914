"""Adam is constructed inside the loop, so its moments are always those of the first step.

expect: step-counter-stands
where: optimizer, *.weight
effects: update-too-large
source: [OpenNMT/OpenNMT-py#617](https://github.com/OpenNMT/OpenNMT-py/issues/617) (the constructor erases the state), [raskr/rust-autograd#16](https://github.com/raskr/rust-autograd/issues/16)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
for step in range(150):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), x @ w)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # <- cause, right: pass
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x = torch.randn(2000, 8)
print("error", round(F.mse_loss(model(x), x @ w).item(), 4))
