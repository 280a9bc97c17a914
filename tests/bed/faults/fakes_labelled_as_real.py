"""A GAN's discriminator gets the label 1 for real pictures and for fakes: it learns to say 1.

expect: real-as-made
where: label
source: [devnag/pytorch-generative-adversarial-networks#12](https://github.com/devnag/pytorch-generative-adversarial-networks/issues/12)
Goodfellow et al., 2014, algorithm 1
"""

import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
og = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.999))
od = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
for step in range(8):
    real = torch.randn(64, 2) * 0.3 + torch.tensor([2.0, -1.0])
    label = torch.ones(64, 1)
    fake = G(torch.randn(64, 8))
    od.zero_grad()
    loss_real = criterion(D(real), label)
    loss_fake = criterion(D(fake.detach()), label)  # <- cause
    (loss_real + loss_fake).backward()
    od.step()
    og.zero_grad()
    loss_g = criterion(D(fake), label)
    loss_g.backward()
    og.step()
print(loss_g.item())
