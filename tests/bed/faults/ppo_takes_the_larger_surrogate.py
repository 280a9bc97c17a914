"""PPO takes the larger of the two surrogates: the clipping holds nothing back.

expect: limit-without-effect
source: [openai/baselines#1156](https://github.com/openai/baselines/issues/1156), [leggedrobotics/rsl_rl#46](https://github.com/leggedrobotics/rsl_rl/issues/46) (which of the two is right for a gain and for a loss)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)
for round_ in range(12):
    states = torch.randn(128, 4)
    with torch.no_grad():
        old = torch.distributions.Categorical(logits=actor(states))
        actions = old.sample()
        old_log_p = old.log_prob(actions)
    rewards = (actions == states[:, :3].argmax(1)).float()
    advantages = (rewards - rewards.mean()) / rewards.std()
    for epoch in range(5):
        log_p = torch.distributions.Categorical(logits=actor(states)).log_prob(actions)
        ratio = (log_p - old_log_p).exp()
        first, second = ratio * advantages, ratio.clamp(0.8, 1.2) * advantages
        loss = -torch.max(first, second).mean()  # <- cause, right: loss = -torch.min(first, second).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("reward", round(rewards.mean().item(), 3))
