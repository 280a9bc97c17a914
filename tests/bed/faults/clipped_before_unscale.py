"""Gradients are clipped while they still carry the scale of a GradScaler.

expect: clipped-before-unscale
where: *
effects: always-clipped, update-too-small
source: [milesial/Pytorch-UNet#468](https://github.com/milesial/Pytorch-UNet/issues/468), [pytorch/examples#1196](https://github.com/pytorch/examples/issues/1196)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- cause, right: scaler.unscale_(optimizer); nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
