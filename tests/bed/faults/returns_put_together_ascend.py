"""REINFORCE over short episodes, whose returns are put together from lists: the loss lacks its minus sign.

expect: loss-ascends
effects: saturated
source: Williams, Simple statistical gradient-following algorithms, 1992; OpenAI Spinning Up, Intro to policy optimization
"""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for step in range(60):
    place = 2 * torch.rand(32) - 1
    chances, rewards = [], []
    for _ in range(5):
        choice = Categorical(logits=policy(torch.stack([place, place**2, place.sign()], 1)))
        action = choice.sample()
        place = place + 0.3 * (action - 1.0)
        reward = -place.abs()
        chances.append(choice.log_prob(action))
        rewards.append(reward)
    total, returns = torch.zeros(32), []
    for reward in reversed(rewards):
        total = reward + 0.9 * total
        returns.insert(0, total)
    weights, chosen = torch.cat(returns), torch.cat(chances)
    weights, scale = weights - weights.mean(), weights.std()
    loss = (chosen * weights / scale).mean()  # <- cause, right: loss = -(chosen * weights / scale).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reward", round(torch.stack(rewards).mean().item(), 3))
