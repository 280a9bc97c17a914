"""The generator of a WGAN makes the critic's score of its samples smaller, as the critic does.

expect: players-agree
source: [Zeleni9/pytorch-wgan#53](https://github.com/Zeleni9/pytorch-wgan/pull/53)
"""

import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
D = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
og = torch.optim.RMSprop(G.parameters(), lr=5e-4)
od = torch.optim.RMSprop(D.parameters(), lr=5e-4)
for step in range(30):
    for _ in range(2):
        real = torch.randn(64, 2) * 0.5 + 2
        fake = G(torch.randn(64, 8)).detach()
        d_loss = D(fake).mean() - D(real).mean()
        od.zero_grad()
        d_loss.backward()
        od.step()
        for p in D.parameters():
            p.data.clamp_(-0.1, 0.1)
    g_loss = D(G(torch.randn(64, 8))).mean()  # <- cause, right: g_loss = -D(G(torch.randn(64, 8))).mean()
    og.zero_grad()
    g_loss.backward()
    og.step()
print(g_loss.item())
