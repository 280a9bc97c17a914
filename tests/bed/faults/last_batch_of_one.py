"""The last batch of each epoch has one sample, and batch norm takes its statistics from it.

expect: batch-norm-of-one
where: 1, *norm*
effects: loss-spike, no-gradient, zero-gradient
source: [pytorch/pytorch#4534](https://github.com/pytorch/pytorch/issues/4534); DataLoader's option drop_last
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
y = torch.randint(4, (161,))
x = torch.randn(4, 1, 6, 6)[y] + 0.5 * torch.randn(161, 1, 6, 6)
loader = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True)  # <- cause, right: loader = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True, drop_last=True)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(12):
    for batch, wanted in loader:
        loss = F.cross_entropy(model(batch), wanted)  # <- cause
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
print("loss", round(F.cross_entropy(model(x), y).item(), 4))
