"""NT-Xent without a mask on the diagonal: each row is its own strongest negative.

expect: compared-with-itself
source: [Lightning-Universe/lightning-bolts#695](https://github.com/Lightning-Universe/lightning-bolts/issues/695); Chen et al., SimCLR, 2020, algorithm 1
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
X = torch.tensor(load_digits().data, dtype=torch.float32) / 16
net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(60):
    x = X[torch.randint(len(X), (64,))]
    a, b = x + 0.1 * torch.randn_like(x), x * (torch.rand_like(x) > 0.2)
    z = F.normalize(net(torch.cat([a, b])), dim=1)
    sim = z @ z.T / 0.1
    target = torch.cat([torch.arange(64) + 64, torch.arange(64)])
    loss = F.cross_entropy(sim, target)  # <- cause, right: loss = F.cross_entropy(sim.masked_fill(torch.eye(128).bool(), -1e9), target)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
