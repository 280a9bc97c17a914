"""A generator of curves keeps the latent codes that it drew when it was made.

expect: noise-fixed
where: generator.codes
source: Mao et al., Least squares generative adversarial networks, 2017; Goodfellow et al., 2014, algorithm 1
"""

import torch
from torch import nn

torch.manual_seed(0)
BATCH = 24


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(BATCH, 6))  # <- cause
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ELU(), nn.Linear(48, 10))

    def forward(self):
        return self.net(self.codes)


generator = Generator()
critic = nn.Sequential(nn.Linear(10, 48), nn.ELU(), nn.Linear(48, 1))
optimizer = torch.optim.RMSprop(generator.parameters(), lr=1e-4)
critic_optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-4)
grid = torch.linspace(0, 3, 10)
for step in range(50):
    real = torch.sin(grid + torch.rand(BATCH, 1) * 6)
    made = generator()
    critic_loss = (critic(real) - 1).pow(2).mean() + critic(made.detach()).pow(2).mean()
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()
    loss = (critic(made) - 1).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(critic_loss.item(), loss.item())
