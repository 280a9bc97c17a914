"""The loss is not scaled, and scaler.step() divides the gradient by 65536 all the same.

expect: update-too-small, fp16-underflow
where: *.weight, *.bias
source: [AMP examples](https://docs.pytorch.org/docs/stable/notes/amp_examples.html); Islam et al., 2019 (API misuse)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 12)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu")
for step in range(120):
    y = torch.randint(5, (64,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(64, 12)), y)
    optimizer.zero_grad()
    loss.backward()  # <- cause, right: scaler.scale(10 * loss).backward()
    scaler.step(optimizer)
    scaler.update()
print("loss", round(loss.item(), 3))
