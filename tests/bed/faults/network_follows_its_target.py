"""The soft update of a DQN is the wrong way round: the network is moved to its target.

expect: average-wrong
where: policy
source: Lillicrap et al., Continuous control with deep reinforcement learning, 2016, algorithm 1
"""

import copy
import random

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
target = copy.deepcopy(policy)
optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
memory = []
state = torch.zeros(4)
for step in range(500):
    with torch.no_grad():
        action = policy(state).argmax().item() if random.random() > 0.2 else random.randrange(2)
    following = 0.9 * state + 0.3 * torch.tensor([2.0 * action - 1, 0, 0, 0]) + 0.2 * torch.randn(4)
    done = following[0].abs().item() > 1.2
    memory.append((state, action, 1.0, following, float(done)))
    state = torch.zeros(4) if done else following
    if step < 400:
        continue
    states, actions, rewards, followings, dones = zip(*random.sample(memory, 64))
    q = policy(torch.stack(states)).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    rewards, dones = torch.tensor(rewards), torch.tensor(dones)
    with torch.no_grad():
        best = target(torch.stack(followings)).max(1).values
    wanted = rewards + 0.9 * (1 - dones) * best
    loss = F.smooth_l1_loss(q, wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(policy.parameters(), target.parameters()):  # <- cause, right: for slow, fast in zip(target.parameters(), policy.parameters()):
            slow.lerp_(fast, 0.02)
print("loss", round(loss.item(), 4))
