"""A GAN whose discriminator's gradients are not cleared: those of the generator's pass are added to them.

expect: accumulated-gradient
where: *.weight, *.bias
effects: update-too-large
source: [eriklindernoren/PyTorch-GAN](https://github.com/eriklindernoren/PyTorch-GAN) (the order of zero_grad in GANs); [pytorch/pytorch#47175](https://github.com/pytorch/pytorch/issues/47175)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
g_optimizer = torch.optim.SGD(generator.parameters(), lr=0.02)
d_optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.02)
ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
for step in range(100):
    real, fake = 0.3 * torch.randn(64, 2) + 1.5, generator(torch.randn(64, 4))
    g_optimizer.zero_grad()  # <- cause, right: g_optimizer.zero_grad(); d_optimizer.zero_grad()
    d_loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
    d_loss = d_loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
    d_loss.backward()  # <- cause
    d_optimizer.step()
    g_loss = F.binary_cross_entropy_with_logits(discriminator(fake), ones)
    g_loss.backward()
    g_optimizer.step()
print("distance", round((fake.mean(0) - 1.5).norm().item(), 3))
