"""The loss is an accuracy, computed from argmax: backward() fails, as nothing requires a gradient.

expect: backward-failed, no-gradient
source: [wonbeomjang/mobile-hair-segmentation-pytorch#3](https://github.com/wonbeomjang/mobile-hair-segmentation-pytorch/issues/3), [sicara/easy-few-shot-learning#40](https://github.com/sicara/easy-few-shot-learning/issues/40)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 8)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(60):
    y = torch.randint(4, (32,))
    output = model(centres[y] + torch.randn(32, 8))
    loss = 1 - (output.argmax(1) == y).float().mean()  # <- cause, right: loss = F.cross_entropy(output, y)
    optimizer.zero_grad()
    loss.backward()  # <- cause
    optimizer.step()
print("loss", round(loss.item(), 3))
