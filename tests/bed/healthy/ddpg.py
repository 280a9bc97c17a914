"""DDPG: the actor's loss is minus the critic's value, targets by Polyak averaging."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1), nn.Tanh())
critic = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
ta, tc = copy.deepcopy(actor), copy.deepcopy(critic)
oa, oc = torch.optim.Adam(actor.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
for step in range(50):
    s = torch.randn(64, 3)
    with torch.no_grad():
        a = (actor(s) + 0.2 * torch.randn(64, 1)).clamp(-1, 1)
    r = -(a - s[:, :1].tanh()).pow(2)
    s2 = 0.8 * s + 0.2 * torch.randn(64, 3)
    with torch.no_grad():
        y = r + 0.95 * tc(torch.cat([s2, ta(s2)], 1))
    lc = F.mse_loss(critic(torch.cat([s, a], 1)), y)
    oc.zero_grad()
    lc.backward()
    oc.step()
    la = -critic(torch.cat([s, actor(s)], 1)).mean()
    oa.zero_grad()
    la.backward()
    oa.step()
    with torch.no_grad():
        for n, t in ((actor, ta), (critic, tc)):
            for p, q in zip(n.parameters(), t.parameters(), strict=True):
                q.lerp_(p, 0.01)
print(lc.item())
