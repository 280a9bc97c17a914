"""The entropy bonus of an actor-critic is added to the loss, so the policy soon explores no more.

expect: loss-ascends
source: [BerkinChen/AlphaSAGE#2](https://github.com/BerkinChen/AlphaSAGE/issues/2)
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh())
        self.pi = nn.Linear(32, 3)
        self.v = nn.Linear(32, 1)
    def forward(self, x):
        h = self.body(x)
        return Categorical(logits=self.pi(h)), self.v(h).squeeze(-1)
net = ActorCritic()
opt = torch.optim.Adam(net.parameters(), lr=5e-3)
best = torch.randn(4, 3)
for step in range(80):
    s = torch.randn(64, 4)
    d, v = net(s)
    a = d.sample()
    r = (a == (s @ best).argmax(1)).float()
    adv = (r - v).detach()
    policy_loss = -(d.log_prob(a) * adv).mean()
    value_loss = F.mse_loss(v, r)
    loss = policy_loss + 0.5 * value_loss + 0.05 * d.entropy().mean()  # <- cause, right: loss = policy_loss + 0.5 * value_loss - 0.05 * d.entropy().mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(r.mean().item())
