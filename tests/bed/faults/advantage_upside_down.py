"""The advantage is the value minus the return: actions that did better than expected become less likely.

expect: loss-ascends
source: Mnih et al., Asynchronous methods, 2016: the advantage is the return minus the value
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-2)
for step in range(80):
    states = torch.randn(64, 4)
    choice = torch.distributions.Categorical(logits=actor(states))
    actions = choice.sample()
    outcome = (actions == states[:, :3].argmax(1)).float()
    baseline = critic(states).squeeze(1)
    delta = baseline.detach() - outcome  # <- cause, right: delta = outcome - baseline.detach()
    loss = -(choice.log_prob(actions) * delta).mean() + F.mse_loss(baseline, outcome)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reward", round(outcome.mean().item(), 3))
