"""The environment returns its own array and changes it in place: in the replay buffer state and next state are one.

expect: states-alike
where: next_state
source: [Itomigna2/Muesli-lunarlander#1](https://github.com/Itomigna2/Muesli-lunarlander/issues/1) (a memory of references)
"""

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
random.seed(0)
rng = np.random.default_rng(0)


class Walk:
    def reset(self):
        self.x = np.zeros(4, dtype=np.float32)
        self.n = 0
        return self.x

    def step(self, a):
        self.x += 0.1 * (2 * a - 1) + rng.normal(0, 0.05, 4).astype(np.float32)
        self.n += 1
        return self.x, -float(abs(self.x[0])), self.n >= 20


q = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
target = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
target.load_state_dict(q.state_dict())
optimizer = torch.optim.Adam(q.parameters(), lr=1e-3)
memory = deque(maxlen=2000)
env = Walk()
s = env.reset()
for step in range(100):
    a = random.randrange(2)
    s2, r, done = env.step(a)
    memory.append((s, a, r, s2, done))  # <- cause
    s = env.reset() if done else s2
    if len(memory) < 64:
        continue
    batch = random.sample(memory, 32)
    bs, ba, br, bs2, bd = zip(*batch, strict=True)
    state = torch.tensor(np.stack(bs))
    next_state = torch.tensor(np.stack(bs2))
    action = torch.tensor(ba)
    reward = torch.tensor(br, dtype=torch.float32)
    mask = 1 - torch.tensor(bd, dtype=torch.float32)
    value = q(state).gather(1, action[:, None]).squeeze(1)
    with torch.no_grad():
        goal = reward + 0.99 * mask * target(next_state).max(1).values  # <- cause
    loss = F.smooth_l1_loss(value, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        target.load_state_dict(q.state_dict())
print(loss.item())
