"""The loss is scaled, and optimizer.step() is called instead of scaler.step(): gradients 65,536 times too large.

expect: update-too-large, learning-rate-too-high
where: *.weight, *.bias, loss
effects: non-finite-forward, non-finite-backward, loss-spike, saturated, zero-gradient, unit-off
source: [AMP examples](https://docs.pytorch.org/docs/stable/notes/amp_examples.html); [transformers#5227](https://github.com/huggingface/transformers/pull/5227)
 (a scaler and a step that do not fit)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 12)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
for step in range(100):
    y = torch.randint(5, (64,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(64, 12)), y)
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # <- cause
    optimizer.step()  # <- cause, right: scaler.step(optimizer); scaler.update()
print("loss", round(loss.item(), 3))
