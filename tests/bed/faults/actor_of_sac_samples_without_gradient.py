"""The actor of a SAC draws its action by sample(): the critic tells it nothing, and only the entropy counts.

expect: loss-part-without-gradient
source: [jankrepl/deepdow#106](https://github.com/jankrepl/deepdow/pull/106) (sample in the place of rsample); Haarnoja et al., 2018
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
for step in range(80):
    states = torch.randn(64, 3)
    mean, log_std = actor(states).chunk(2, 1)
    policy = torch.distributions.Normal(mean, log_std.clamp(-3, 1).exp())
    actions = policy.sample()  # <- cause, right: actions = policy.rsample()
    rewards = -(actions - states[:, :1]) ** 2
    critic_loss = F.mse_loss(critic(torch.cat([states, actions.detach()], 1)), rewards.detach())
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()
    q = critic(torch.cat([states, actions], 1))
    actor_loss = (0.1 * policy.log_prob(actions) - q).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()
print("loss", round(actor_loss.item(), 3))
