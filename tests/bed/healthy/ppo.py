"""PPO: a clipped surrogate, a value loss and an entropy bonus, several epochs over each batch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh())
        self.actor, self.critic = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x):
        h = self.body(x)
        return Categorical(logits=self.actor(h)), self.critic(h).squeeze(-1)


model = ActorCritic()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
for update in range(12):
    states = torch.randn(256, 4)
    with torch.no_grad():
        choice, values = model(states)
        actions = choice.sample()
        old = choice.log_prob(actions)
    rewards = (actions == states[:, :3].argmax(1)).float()
    advantages = rewards - values
    for epoch in range(2):
        for rows in torch.randperm(256).split(64):
            choice, value = model(states[rows])
            ratio = (choice.log_prob(actions[rows]) - old[rows]).exp()
            advantage = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std() + 1e-8)
            surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = -surrogate + 0.5 * F.mse_loss(value, rewards[rows]) - 0.01 * choice.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
print("reward", round(rewards.mean().item(), 3))
