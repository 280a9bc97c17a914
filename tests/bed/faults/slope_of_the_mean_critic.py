"""The gradient penalty of a critic is that of its mean over the batch, 32 times too small at each point.

expect: derivative-of-mean
source: Gulrajani et al., Improved training of Wasserstein GANs, 2017, algorithm 1; PyTorch's documentation of torch.autograd.grad: grad_outputs
"""

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
for step in range(40):
    angle = torch.rand(32) * 6.28
    real = torch.stack([angle.cos(), angle.sin()], 1)
    fake = generator(torch.randn(32, 4))
    share = torch.rand(32, 1)
    between = (share * real + (1 - share) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).mean(), between, create_graph=True)  # <- cause
    penalty = (slope.norm(dim=1) - 1).pow(2).mean()
    critic_loss = critic(fake.detach()).mean() - critic(real).mean() + 10 * penalty
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()
    loss = -critic(fake).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(critic_loss.item(), loss.item())
