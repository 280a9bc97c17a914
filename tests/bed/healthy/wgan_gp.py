"""A Wasserstein GAN with a gradient penalty and five critic steps for each of the generator."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
c_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))


def real_points():
    centre = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])[torch.randint(3, (64,))]
    return centre + 0.1 * torch.randn(64, 2)


for step in range(30):
    for _ in range(5):
        real, fake = real_points(), generator(torch.randn(64, 4)).detach()
        mix = torch.rand(64, 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        c_loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
        c_optimizer.zero_grad()
        c_loss.backward()
        c_optimizer.step()
    g_loss = -critic(generator(torch.randn(64, 4))).mean()
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
print("critic", round(c_loss.item(), 3))
