"""A classifier of four clusters whose schedule has a mistake: at step 120 the learning rate is multiplied by 300."""

import torch
from torch import nn

torch.manual_seed(0)
centres = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]])
labels = torch.arange(256) % 4
points = centres[labels] + 0.6 * torch.randn(256, 2)

model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 300 if step >= 120 else 1)

for _ in range(200):
    batch = torch.randint(256, (32,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(points[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    schedule.step()
