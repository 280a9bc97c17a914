"""The mean squared error by hand, with a column against a vector: no warning at all.

expect: broadcast-in-loss
source: [manzilzaheer/DeepSets#1](https://github.com/manzilzaheer/DeepSets/pull/1), [benedekrozemberczki/pytorch_geometric_temporal#233](https://github.com/benedekrozemberczki/pytorch_geometric_temporal/pull/233)
"""

import torch
from torch import nn

torch.manual_seed(0)
prices = torch.randn(500, 5)
wanted = prices @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5])
net = nn.Linear(5, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
for epoch in range(12):
    for rows in torch.randperm(500).split(50):
        difference = net(prices[rows]) - wanted[rows]  # <- cause, right: difference = net(prices[rows])[:, 0] - wanted[rows]
        loss = (difference**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round((net(prices)[:, 0] - wanted).square().mean().item(), 3))
