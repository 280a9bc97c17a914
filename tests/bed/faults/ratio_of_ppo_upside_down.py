"""The ratio of PPO is old / new: actions with a high advantage become less likely.

expect: loss-ascends
source: [openai/baselines#1218](https://github.com/openai/baselines/issues/1218), [hill-a/stable-baselines#447](https://github.com/hill-a/stable-baselines/issues/447) (the question of its direction)
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
opt = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=3e-3)
best = torch.randn(4, 3)
for it in range(20):
    with torch.no_grad():
        s = torch.randn(128, 4)
        d = Categorical(logits=actor(s))
        a = d.sample()
        old = d.log_prob(a)
        r = (a == (s @ best).argmax(1)).float()
        adv = r - critic(s).squeeze(-1)
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    for epoch in range(4):
        d = Categorical(logits=actor(s))
        ratio = torch.exp(old - d.log_prob(a))  # <- cause, right: ratio = torch.exp(d.log_prob(a) - old)
        policy_loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        loss = policy_loss + 0.5 * F.mse_loss(critic(s).squeeze(-1), r)
        opt.zero_grad()
        loss.backward()
        opt.step()
    if it % 5 == 0:
        print(it, r.mean().item())
