"""A relative error divides by targets that may be almost 0: a few samples make nearly all of the loss.

expect: relative-error-near-zero
source: [sktime/pytorch-forecasting#265](https://github.com/sktime/pytorch-forecasting/issues/265), [timeseriesAI/tsai#524](https://github.com/timeseriesAI/tsai/issues/524)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(600, 12)
demand = (features @ torch.randn(12, 1)).relu() + 1e-6
model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    rows = torch.randint(0, 600, (64,))
    predicted = model(features[rows])
    loss = ((predicted - demand[rows]).abs() / demand[rows]).mean()  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
