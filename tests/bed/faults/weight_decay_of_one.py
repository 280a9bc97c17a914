"""weight_decay=1 in SGD: the decay is stronger than the gradient of the loss.

expect: penalty-dominates
where: *.weight
source: Humbatova et al., 2020 (wrong regularisation); Cao et al., DeepFD, 2022
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 8)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1.0)  # <- cause, right: optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-4)
for step in range(100):
    y = torch.randint(4, (64,))
    x = centres[y] + 0.8 * torch.randn(64, 8)
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
