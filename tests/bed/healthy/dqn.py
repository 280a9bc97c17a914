"""A DQN with a replay memory, a target network and Huber loss."""

import copy
import random
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
random.seed(0)
policy = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
target = copy.deepcopy(policy)
optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
memory = deque(maxlen=2000)
state = torch.zeros(2)
for step in range(300):
    with torch.no_grad():
        action = policy(state).argmax().item() if random.random() > 0.2 else random.randrange(2)
    following = state * 0.9 + 0.3 * torch.tensor([2.0 * action - 1, 0.0]) + 0.1 * torch.randn(2)
    reward = -following[0].abs().item()
    memory.append((state, action, reward, following))
    state = following
    if step < 180:
        continue
    states, actions, rewards, followings = zip(*random.sample(memory, 64), strict=True)
    q = policy(torch.stack(states)).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    with torch.no_grad():
        wanted = torch.tensor(rewards) + 0.8 * target(torch.stack(followings)).max(1).values
    loss = F.smooth_l1_loss(q, wanted)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(policy.parameters(), 100)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), policy.parameters(), strict=True):
            slow.lerp_(fast, 0.02)
print("loss", round(loss.item(), 4))
