"""PPO recomputes the old log-probability with the graph attached: log_prob - log_prob is constant, so the ratio never has a gradient.

expect: zero-gradient
where: actor.*
source: [tensorforce/tensorforce#312](https://github.com/tensorforce/tensorforce/issues/312)
"""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=3e-3)
best = torch.randn(4, 3)
for step in range(80):
    state = torch.randn(64, 4)
    with torch.no_grad():
        action = Categorical(logits=actor(state)).sample()
    reward = (action == (state @ best).argmax(1)).float()
    value = critic(state).squeeze(1)
    advantage = (reward - value).detach()
    log_prob = Categorical(logits=actor(state)).log_prob(action)
    old_log_prob = log_prob  # <- cause, right: old_log_prob = log_prob.detach()
    ratio = torch.exp(log_prob - old_log_prob)
    surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    loss = -surrogate + 0.5 * (reward - value).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reward", round(reward.mean().item(), 3))
