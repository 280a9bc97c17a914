"""A GAN: the discriminator steps between the generator's forward and backward, and changes saved weights.

expect: backward-failed
source: [pytorch/pytorch#39141](https://github.com/pytorch/pytorch/issues/39141), [leftthomas/SRGAN#89](https://github.com/leftthomas/SRGAN/issues/89)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
ones, zeros = torch.ones(32, 1), torch.zeros(32, 1)
for step in range(60):
    real, fake = torch.randn(32, 2) + 2, generator(torch.randn(32, 4))
    score = discriminator(fake)
    g_loss = F.binary_cross_entropy_with_logits(score, ones)
    d_loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
    d_loss = d_loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()  # <- cause, right: pass
    g_optimizer.zero_grad()
    g_loss.backward()  # <- cause, right: g_loss.backward(inputs=list(generator.parameters())); d_optimizer.step()
    g_optimizer.step()
print("losses", round(d_loss.item(), 3), round(g_loss.item(), 3))
