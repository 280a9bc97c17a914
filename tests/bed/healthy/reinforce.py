"""REINFORCE with a running baseline on a corridor; episodes grow as the policy learns to survive."""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)


def episode():
    """A ball on a beam: it falls off when its place leaves [-1, 1]."""
    place, speed = 0.2 * torch.randn(2)
    log_probabilities, rewards = [], []
    for _ in range(40):
        choice = Categorical(logits=policy(torch.stack([place, speed])))
        action = choice.sample()
        log_probabilities.append(choice.log_prob(action))
        speed = speed + 0.15 * (2 * action - 1) + 0.1 * place
        place = place + 0.2 * speed
        rewards.append(1.0)
        if place.abs() > 1:
            break
    return torch.stack(log_probabilities), torch.tensor(rewards)


lengths = []
for step in range(60):
    log_probabilities, rewards = episode()
    returns = rewards.flip(0).cumsum(0).flip(0)
    returns = (returns - returns.mean()) / (returns.std() + 1e-6)
    loss = -(log_probabilities * returns).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    lengths.append(len(rewards))
print("length", sum(lengths[-20:]) / 20)
