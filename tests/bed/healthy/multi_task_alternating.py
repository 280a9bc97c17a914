"""Two tasks on one body, in turns: the loss alternates between two scales."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
body = nn.Sequential(nn.Linear(8, 48), nn.ReLU())
heads = nn.ModuleDict({"class": nn.Linear(48, 4), "value": nn.Linear(48, 1)})
model = nn.ModuleDict({"body": body, "heads": heads})
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
w = torch.randn(8, 4)
for step in range(120):
    x = torch.randn(64, 8)
    h = body(x)
    if step % 2 == 0:
        loss = F.cross_entropy(heads["class"](h), (x @ w).argmax(1))
    else:
        loss = F.mse_loss(heads["value"](h), torch.tanh(x @ w[:, :1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
