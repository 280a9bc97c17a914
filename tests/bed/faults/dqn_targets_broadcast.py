"""A DQN whose targets are a vector and whose values are a column.

expect: broadcast-in-loss
source: [kengz/SLM-Lab#372](https://github.com/kengz/SLM-Lab/pull/372), [PacktPublishing/Deep-Reinforcement-Learning-Hands-On#33](https://github.com/PacktPublishing/Deep-Reinforcement-Learning-Hands-On/issues/33)
"""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn

warnings.simplefilter("ignore")
torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
target = copy.deepcopy(policy)
optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
for step in range(120):
    states = torch.randn(64, 4)
    actions = torch.randint(2, (64, 1))
    rewards = torch.where(actions[:, 0] == (states[:, 0] > 0).long(), 1.0, -1.0)
    following = torch.randn(64, 4)
    q = policy(states).gather(1, actions)  # <- cause, right: q = policy(states).gather(1, actions).squeeze(1)
    with torch.no_grad():
        wanted = rewards + 0.5 * target(following).max(1).values
    loss = F.smooth_l1_loss(q, wanted)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        target.load_state_dict(policy.state_dict())
states = torch.randn(1000, 4)
print("right actions", round((policy(states).argmax(1) == (states[:, 0] > 0).long()).float().mean().item(), 3))
