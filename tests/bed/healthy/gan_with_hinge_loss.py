"""A GAN with hinge loss and spectral norm, two critic steps per generator step."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as sn

torch.manual_seed(0)
G = nn.Sequential(
    nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)
)
D = nn.Sequential(
    sn(nn.Linear(2, 64)), nn.LeakyReLU(0.2), sn(nn.Linear(64, 64)), nn.LeakyReLU(0.2), sn(nn.Linear(64, 1))
)
og = torch.optim.Adam(G.parameters(), 2e-4, betas=(0.0, 0.9))
od = torch.optim.Adam(D.parameters(), 4e-4, betas=(0.0, 0.9))
for step in range(40):
    for _ in range(2):
        a = 6.28 * torch.rand(64)
        real = torch.stack([a.cos(), a.sin()], 1) + 0.05 * torch.randn(64, 2)
        with torch.no_grad():
            fake = G(torch.randn(64, 8))
        d = F.relu(1 - D(real)).mean() + F.relu(1 + D(fake)).mean()
        od.zero_grad()
        d.backward()
        od.step()
    g = -D(G(torch.randn(64, 8))).mean()
    og.zero_grad()
    g.backward()
    og.step()
print(d.item(), g.item())
