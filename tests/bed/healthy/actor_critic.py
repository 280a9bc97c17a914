"""A2C with returns, entropy and a shared body: the loss is near 0 and changes its sign."""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
body, pi, v = nn.Sequential(nn.Linear(4, 64), nn.Tanh()), nn.Linear(64, 2), nn.Linear(64, 1)
opt = torch.optim.RMSprop([*body.parameters(), *pi.parameters(), *v.parameters()], lr=7e-4, eps=1e-5)
s = torch.randn(16, 4)
for update in range(60):
    logps, values, rewards, ents = [], [], [], []
    for t in range(5):
        h = body(s)
        d = Categorical(logits=pi(h))
        a = d.sample()
        logps.append(d.log_prob(a))
        values.append(v(h).squeeze(1))
        ents.append(d.entropy())
        rewards.append(((s[:, 0] > 0).long() == a).float() - 0.5)
        s = 0.9 * s + 0.4 * torch.randn(16, 4)
    with torch.no_grad():
        R = v(body(s)).squeeze(1)
    loss = 0
    for t in reversed(range(5)):
        R = rewards[t] + 0.9 * R
        adv = R - values[t]
        loss = loss + (-(logps[t] * adv.detach()) + 0.5 * adv.pow(2) - 0.01 * ents[t]).mean()
    loss = loss / 5
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(body.parameters(), 0.5)
    opt.step()
print(loss.item())
