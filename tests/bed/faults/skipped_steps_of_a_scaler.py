"""A scale of 2**40 that never falls (backoff_factor of almost 1): every gradient overflows and every step is skipped.

expect: step-not-called
where: optimizer
source: [espnet/espnet#2362](https://github.com/espnet/espnet/pull/2362), [pytorch/pytorch#67590](https://github.com/pytorch/pytorch/issues/67590)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=0.999999)  # <- cause, right: scaler = torch.amp.GradScaler("cpu")
w = torch.randn(8, 1)
for step in range(80):
    x = torch.randn(32, 8)
    with torch.autocast("cpu", dtype=torch.float16):
        prediction = model(x)
    loss = F.mse_loss(prediction.float(), x @ w)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
print("loss", round(loss.item(), 3))
