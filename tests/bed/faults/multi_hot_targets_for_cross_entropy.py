"""Several labels per sample go into cross_entropy: the probabilities of a softmax cannot all be 1.

expect: targets-out-of-range
source: [tensorflow/tensorflow#15079](https://github.com/tensorflow/tensorflow/issues/15079), [fastai/fastbook#647](https://github.com/fastai/fastbook/issues/647)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(600, 12)
tags = (features @ torch.randn(12, 6) > 0.5).float()
model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 6))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    rows = torch.randint(0, 600, (64,))
    loss = F.cross_entropy(model(features[rows]), tags[rows])  # <- cause, right: loss = F.binary_cross_entropy_with_logits(model(features[rows]), tags[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
