"""Soft actor-critic on a point that is to reach the origin: two critics, targets under no_grad, a squashed Gaussian."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU())
        self.mean, self.log_std = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, state):
        h = self.body(state)
        normal = torch.distributions.Normal(self.mean(h), self.log_std(h).clamp(-3, 1).exp())
        raw = normal.rsample()
        action = torch.tanh(raw)
        return action, (normal.log_prob(raw) - torch.log(1 - action**2 + 1e-6)).sum(1)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q1 = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
        self.q2 = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, state, action):
        x = torch.cat([state, action], dim=1)
        return self.q1(x)[:, 0], self.q2(x)[:, 0]


actor, critic = Actor(), Critic()
target = copy.deepcopy(critic).requires_grad_(False)
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=2e-3)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
for step in range(80):
    state = torch.randn(64, 2)
    with torch.no_grad():
        action, _ = actor(state)
        following = state + 0.5 * action
        reward = -following.norm(dim=1)
        next_action, log_probability = actor(following)
        wanted = reward + 0.8 * (torch.min(*target(following, next_action)) - 0.1 * log_probability)
    q1, q2 = critic(state, action)
    critic_loss = F.mse_loss(q1, wanted) + F.mse_loss(q2, wanted)
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()
    action, log_probability = actor(state)
    actor_loss = (0.1 * log_probability - torch.min(*critic(state, action))).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
            slow.lerp_(fast, 0.02)
print("critic", round(critic_loss.item(), 3))
