"""A focal loss by hand takes the logarithm of 1 - p: a confident p is 1 in float32, and the logarithm is -inf.

expect: non-finite-forward
source: [xingyizhou/CenterNet#121](https://github.com/xingyizhou/CenterNet/pull/121), [xingyizhou/CenterNet#234](https://github.com/xingyizhou/CenterNet/issues/234)
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
w = torch.randn(6)
for step in range(100):
    x = torch.randn(64, 6)
    y = ((x @ w) > 0).float()[:, None]
    if step == 60:
        x = x * 40
    p = torch.sigmoid(model(x))
    loss = -(y * (1 - p) ** 2 * p.log() + (1 - y) * p**2 * (1 - p).log()).mean()  # <- cause, right: p = p.clamp(1e-6, 1 - 1e-6); loss = -(y * (1 - p) ** 2 * p.log() + (1 - y) * p**2 * (1 - p).log()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
