"""Dropout(p=1.0), meant as "keep all": the layer passes only zeros on.

expect: zero-gradient
where: 3.weight
source: [piergiaj/pytorch-i3d#58](https://github.com/piergiaj/pytorch-i3d/issues/58), [pudae/tensorflow-densenet#22](https://github.com/pudae/tensorflow-densenet/pull/22)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
keep_prob = 1.0
net = nn.Sequential(
    nn.Linear(10, 64),
    nn.ReLU(),
    nn.Dropout(keep_prob),  # <- cause, right: nn.Dropout(1 - keep_prob),
    nn.Linear(64, 3),
)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
centres = torch.randn(3, 10)
for step in range(60):
    y = torch.randint(3, (32,))
    loss = F.cross_entropy(net(centres[y] + 0.5 * torch.randn(32, 10)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
