"""A softmax with dim=0 normalises over the batch.

expect: softmax-axis
source: [perone/euclidesdb#2](https://github.com/perone/euclidesdb/issues/2), [Lackel/DPN#1](https://github.com/Lackel/DPN/issues/1)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 8)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
for step in range(100):
    y = torch.randint(4, (32,))
    x = centres[y] + 0.7 * torch.randn(32, 8)
    log_probabilities = F.log_softmax(net(x), dim=0)  # <- cause, right: log_probabilities = F.log_softmax(net(x), dim=1)
    loss = F.nll_loss(log_probabilities, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
