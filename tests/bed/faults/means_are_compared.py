"""The loss compares the mean of the predictions with the mean of the targets: no sample has its own target.

expect: averaged-first
source: Humbatova et al., 2020 (wrong loss function calculation)
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
for step in range(80):
    x = torch.randn(64, 8)
    y = torch.tanh(x @ w)
    loss = (model(x).mean() - y.mean()) ** 2  # <- cause, right: loss = ((model(x) - y) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round((model(x) - y).square().mean().item(), 3))
