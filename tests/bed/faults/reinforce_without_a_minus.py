"""REINFORCE without the minus sign: what was rewarded becomes less likely.

expect: loss-ascends
source: [openai/spinningup#436](https://github.com/openai/spinningup/issues/436), [ikostrikov/pytorch-a3c#30](https://github.com/ikostrikov/pytorch-a3c/issues/30) (why the minus is needed)
"""

import torch
from torch import nn

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
best = torch.randn(4, 3)
for step in range(100):
    s = torch.randn(64, 4)
    d = torch.distributions.Categorical(logits=policy(s))
    a = d.sample()
    r = (a == (s @ best).argmax(1)).float()
    loss = (d.log_prob(a) * r).mean()  # <- cause, right: loss = -(d.log_prob(a) * r).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(r.mean().item())
