"""The distance of two equal embeddings: the root has an infinite slope at 0.

expect: non-finite-backward
source: [pytorch/pytorch#2421](https://github.com/pytorch/pytorch/issues/2421), [pytorch_stoi#7](https://github.com/mpariente/pytorch_stoi/issues/7)
"""

import torch
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 10)
net = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(80):
    first = centres[torch.randint(4, (32,))] + 0.5 * torch.randn(32, 10)
    second = first.clone()
    second[step % 25 != 24 :] += 0.2 * torch.randn(32 - (step % 25 != 24), 10) if step % 25 != 24 else 0
    if step % 25 != 24:
        second[0] += 0.1
    squared = (net(first) - net(second)).square().sum(1)
    distance = torch.sqrt(squared)  # <- cause, right: distance = torch.sqrt(squared + 1e-8)
    spread = net(first).var(0).mean()
    loss = distance.mean() + (1 - spread).square()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
