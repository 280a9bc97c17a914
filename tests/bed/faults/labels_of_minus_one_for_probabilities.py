"""Labels are -1 and +1, as for an SVM, and go into binary_cross_entropy_with_logits: the loss has no lower bound.

expect: targets-out-of-range
source: [interactiveaudiolab/emphases#16](https://github.com/interactiveaudiolab/emphases/pull/16)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
w = torch.randn(6, 1)
for step in range(80):
    x = torch.randn(64, 6)
    y = torch.sign(x @ w)
    loss = F.binary_cross_entropy_with_logits(net(x), y)  # <- cause, right: loss = F.binary_cross_entropy_with_logits(net(x), (y + 1) / 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
