"""A batch norm follows the last layer of a regression: predictions have mean 0 and deviation 1, targets lie around 50.

expect: norm-on-outputs
where: 3
source: [Lab41/attalos#89](https://github.com/Lab41/attalos/pull/89), [fastai/fastai2#107](https://github.com/fastai/fastai2/issues/107)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(600, 12)
prices = 50 + 8 * features @ torch.randn(12, 1)
model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1), nn.BatchNorm1d(1))  # <- cause, right: model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    rows = torch.randint(0, 600, (64,))
    loss = F.mse_loss(model(features[rows]), prices[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
