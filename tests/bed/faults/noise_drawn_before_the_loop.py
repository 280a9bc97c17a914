"""A generator gets the same noise in each step.

expect: noise-fixed
where: noise
source: Goodfellow et al., Generative adversarial nets, 2014, algorithm 1
"""

import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
D = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
og = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
od = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
noise = torch.randn(32, 8)  # <- cause
for it in range(60):
    t = torch.rand(32) * 6.28
    real = torch.stack([t.cos(), t.sin()], 1) + 0.05 * torch.randn(32, 2)
    fake = G(noise)
    d_loss = bce(D(real), torch.ones(32, 1)) + bce(D(fake.detach()), torch.zeros(32, 1))
    od.zero_grad()
    d_loss.backward()
    od.step()
    g_loss = bce(D(fake), torch.ones(32, 1))
    og.zero_grad()
    g_loss.backward()
    og.step()
print(d_loss.item(), g_loss.item())
