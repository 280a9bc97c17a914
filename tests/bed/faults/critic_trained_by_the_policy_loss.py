"""The advantage is not detached: the policy loss trains the critic to be wrong.

expect: trained-target
source: [astariul/encode-attend-navigate-pytorch#2](https://github.com/astariul/encode-attend-navigate-pytorch/issues/2), [coreylynch/async-rl#8](https://github.com/coreylynch/async-rl/issues/8)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=5e-3)
best = torch.randn(4, 3)
for step in range(100):
    state = torch.randn(64, 4)
    policy = torch.distributions.Categorical(logits=actor(state))
    action = policy.sample()
    reward = (action == (state @ best).argmax(1)).float()
    value = critic(state)[:, 0]
    advantage = reward - value  # <- cause, right: advantage = (reward - value).detach()
    policy_loss = -(policy.log_prob(action) * advantage).mean()
    loss = policy_loss + 0.5 * F.mse_loss(value, reward)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("value error", round(F.mse_loss(value, reward).item(), 3))
