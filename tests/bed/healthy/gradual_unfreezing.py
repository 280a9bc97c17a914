"""Fine-tuning in two phases: first the head, then all of it with a smaller rate in a second group."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 10)
model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(10, 32), nn.Tanh()), "head": nn.Linear(32, 4)})
model["body"].requires_grad_(False)
optimizer = torch.optim.Adam(model["head"].parameters(), lr=5e-3)
for step in range(100):
    if step == 50:
        model["body"].requires_grad_(True)
        optimizer.add_param_group({"params": model["body"].parameters(), "lr": 1e-3})
    y = torch.randint(4, (64,))
    x = centres[y] + torch.randn(64, 10)
    loss = F.cross_entropy(model["head"](model["body"](x)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
