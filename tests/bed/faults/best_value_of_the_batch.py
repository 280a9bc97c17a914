"""The target of Q-learning takes the largest value over the batch, not over the actions.

expect: best-of-batch
source: [BY571/IQN-and-Extensions#9](https://github.com/BY571/IQN-and-Extensions/issues/9) (another axis than that of the actions); Mnih et al., 2015
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
    qa = q(S).gather(1, A.unsqueeze(1)).expand(-1, 2)
    with torch.no_grad():
        best = target(S2).max(0)[0]  # <- cause
        y = R.unsqueeze(1) + 0.95 * best * (1 - D).unsqueeze(1)
    loss = F.smooth_l1_loss(qa, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if it % 20 == 0:
        target.load_state_dict(q.state_dict())
print(loss.item())
