"""Missing values are filled with -999 after the features were standardised.

expect: input-not-normalised
where: input
source: [gzerveas/mvts_transformer#41](https://github.com/gzerveas/mvts_transformer/issues/41); Humbatova et al., 2020 (missing preprocessing)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(600, 12)
prices = features @ torch.randn(12, 1)
features[torch.rand(600, 12) < 0.02] = float("nan")
features = features.nan_to_num(nan=-999.0)  # <- cause, right: features = features.nan_to_num(nan=0.0)
model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    rows = torch.randint(0, 600, (64,))
    loss = F.mse_loss(model(features[rows]), prices[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
