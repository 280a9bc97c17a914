"""REINFORCE multiplies the mean of all log-probabilities by the return of each action.

expect: credit-lost
source: [Farama-Foundation/Gymnasium#1336](https://github.com/Farama-Foundation/Gymnasium/issues/1336)
"""

import torch
from torch import nn
from torch.distributions import Normal

torch.manual_seed(0)
class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 32), nn.Tanh())
        self.mean = nn.Linear(32, 1)
        self.std = nn.Linear(32, 1)
    def forward(self, x):
        h = self.shared(x)
        return self.mean(h), torch.log(1 + torch.exp(self.std(h)))
net = Policy()
opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
for episode in range(60):
    state = torch.randn(4)
    probs, rewards = [], []
    for t in range(20):
        mean, std = net(state)
        d = Normal(mean[0] + 1e-6, std[0] + 1e-6)
        a = d.sample()
        probs.append(d.log_prob(a))
        rewards.append(1.0 - abs(a.item() - state[0].item()))
        state = 0.9 * state + 0.3 * torch.randn(4)
    g, gs = 0, []
    for r in rewards[::-1]:
        g = r + 0.99 * g
        gs.insert(0, g)
    deltas = torch.tensor(gs)
    log_probs = torch.stack(probs)
    log_prob_mean = log_probs.mean()
    loss = -torch.sum(log_prob_mean * deltas)  # <- cause, right: loss = -torch.sum(log_probs * deltas)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(sum(rewards))
