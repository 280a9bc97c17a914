"""A masked mean divides by the number of valid elements, which is 0 in a rare batch.

expect: non-finite-forward
source: [MhLiao/DB#14](https://github.com/MhLiao/DB/issues/14), [NVIDIA-NeMo/RL#158](https://github.com/NVIDIA-NeMo/RL/issues/158)
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(6, 1)
for step in range(90):
    x = torch.randn(16, 6)
    valid = (torch.rand(16, 1) < 0.5).float()
    if step == 55:
        valid.zero_()
    error = (model(x) - torch.tanh(x @ w)) ** 2 * valid
    loss = error.sum() / valid.sum()  # <- cause, right: loss = error.sum() / valid.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
