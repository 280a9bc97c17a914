"""binary_cross_entropy(target, prediction): the label is taken for the probability, and its logarithm is clamped at -100.

expect: non-finite-backward, targets-out-of-range
effects: forward-failed
source: [autonomousvision/sledge#4](https://github.com/autonomousvision/sledge/issues/4)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8)
for step in range(80):
    x = torch.randn(64, 8)
    y = (torch.sigmoid(2 * x @ w) > torch.rand(64)).float()[:, None]
    loss = F.binary_cross_entropy(y, model(x))  # <- cause, right: loss = F.binary_cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("cross entropy", round(F.binary_cross_entropy(model(x), y).item(), 3))
