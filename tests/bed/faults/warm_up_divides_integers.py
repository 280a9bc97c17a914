"""The warm-up divides integers: the factor is 0 until the warm-up has ended.

expect: stuck-update
where: *.weight, *.bias
source: [facebookresearch/maskrcnn-benchmark#335](https://github.com/facebookresearch/maskrcnn-benchmark/issues/335)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 5))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
warmup = 1000
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) // warmup))  # <- cause, right: scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 20))
w = torch.randn(10, 5)
for step in range(80):
    x = torch.randn(64, 10)
    y = (x @ w).argmax(1)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
print("loss", round(loss.item(), 3))
