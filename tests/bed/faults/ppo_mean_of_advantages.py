"""The surrogate of PPO multiplies each ratio by the mean of the advantages, which is 0.

expect: credit-lost
source: [Omegastick/pytorch-cpp-rl#14](https://github.com/Omegastick/pytorch-cpp-rl/issues/14)
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
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
best = torch.randn(4, 3)
for it in range(20):
    with torch.no_grad():
        s = torch.randn(128, 4)
        d, v = net(s)
        a = d.sample()
        old = d.log_prob(a)
        r = (a == (s @ best).argmax(1)).float()
        adv = r - v
        adv = (adv - adv.mean()) / (adv.std() + 1e-5)
    for epoch in range(4):
        d, v = net(s)
        ratio = (d.log_prob(a) - old).exp()
        surr1 = (ratio * adv.mean()).mean()  # <- cause, right: surr1 = (ratio * adv).mean()
        surr2 = (ratio.clamp(0.8, 1.2) * adv.mean()).mean()
        loss = -torch.min(surr1, surr2) + 0.5 * F.mse_loss(v, r) - 0.01 * d.entropy().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    if it % 5 == 0:
        print(it, r.mean().item())
