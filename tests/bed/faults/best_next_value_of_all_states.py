"""Rewards of all actions are known, and the value after each is the largest over the states of the batch.

expect: best-of-batch
source: PyTorch's documentation of torch.amax: dim; Mnih et al., Human-level control through deep reinforcement learning, 2015
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
values = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
frozen = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(values.parameters(), lr=0.02)
moves, pays = torch.randn(3, 4) * 0.3, torch.randn(4, 3)
for step in range(60):
    if step % 15 == 0:
        frozen.load_state_dict(values.state_dict())
    states = torch.randn(24, 4)
    rewards = states @ pays
    following = states + moves[torch.randint(3, (24,))]
    predicted = values(states)
    with torch.no_grad():
        future = frozen(following).amax(dim=0)  # <- cause
    targets = rewards + 0.9 * future
    loss = F.mse_loss(predicted, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
