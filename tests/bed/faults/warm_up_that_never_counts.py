"""A warm-up by a counter that nobody increments: the rate is 0 in every step.

expect: stuck-update
where: 0.weight
source: [facebookresearch/maskrcnn-benchmark#335](https://github.com/facebookresearch/maskrcnn-benchmark/issues/335) (a warm-up of 0); Humbatova et al., 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
count = 0
for step in range(60):
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * min(1, count / 20)  # <- cause, right: group["lr"] = 1e-2 * min(1, (step + 1) / 20)
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.tanh(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
