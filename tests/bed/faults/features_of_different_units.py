"""Age, income and a share as features of one network: the income drowns the others.

expect: input-not-normalised
where: input*, x*, batch*, people*, getitem*
effects: update-too-large, learning-rate-too-high, loss-spike, initial-loss, unit-off, zero-gradient
source: Islam et al., 2019 (data bugs); LeCun et al., Efficient backprop, 1998
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
age, income, share = 20 + 50 * torch.rand(800), 50_000 * torch.rand(800).exp(), torch.rand(800)
people = torch.stack([age, income, share], dim=1)
sick = ((age - 45) / 15 + 4 * (share - 0.5) > 0).float()[:, None]
people = people  # <- cause, right: people = (people - people.mean(0)) / people.std(0)
model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(800, (64,))
    loss = F.binary_cross_entropy_with_logits(model(people[rows]), sick[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round(((model(people) > 0).float() == sick).float().mean().item(), 3))
