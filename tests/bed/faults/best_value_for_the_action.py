"""Q-learning trains the largest value in place of that of the action that was taken.

expect: value-of-best
source: Mnih et al., Human-level control through deep reinforcement learning, 2015, algorithm 1
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
random.seed(0)


def env_reset():
    return torch.tensor([random.uniform(-1, 1), 0.0])


def env_step(s, a):
    v = 0.9 * s[1] + (0.1 if a == 1 else -0.1)
    p = s[0] + v
    s2 = torch.stack([p, v])
    done = bool(abs(p) > 1.5)
    return s2, 1.0 - float(abs(p)), done


q = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
target = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
target.load_state_dict(q.state_dict())
opt = torch.optim.Adam(q.parameters(), lr=1e-3)
memory = []
s = env_reset()
length = 0
for it in range(130):
    with torch.no_grad():
        a = random.randrange(2) if random.random() < 0.3 else int(q(s).argmax())
    s2, r, done = env_step(s, a)
    length += 1
    memory.append((s, a, r, s2, float(done)))
    s = s2
    if done or length == 30:
        s = env_reset()
        length = 0
    if len(memory) < 40:
        continue
    b = random.sample(memory, 32)
    S = torch.stack([m[0] for m in b])
    A = torch.tensor([m[1] for m in b])
    R = torch.tensor([m[2] for m in b])
    S2 = torch.stack([m[3] for m in b])
    D = torch.tensor([m[4] for m in b])
    qa = q(S).max(1)[0]  # <- cause
    with torch.no_grad():
        best = target(S2).max(1)[0]
        y = R + 0.95 * best * (1 - D)
    loss = F.smooth_l1_loss(qa, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if it % 20 == 0:
        target.load_state_dict(q.state_dict())
print(loss.item())
