"""A bandit with contexts pulls an arm at random, and trains the value of the arm that it thinks the best.

expect: value-of-best
source: Sutton and Barto, Reinforcement learning, 2018, equation 6.8: the value of the action that was taken
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 4))
old = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 4))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
pay, drift = torch.randn(5, 4), torch.randn(4, 5) * 0.2
for step in range(60):
    if step % 10 == 0:
        old.load_state_dict(net.state_dict())
    seen = torch.randn(32, 5)
    arm = torch.randint(4, (32,))
    reward = (seen @ pay).gather(1, arm[:, None]).squeeze(1)
    then = seen + drift[arm]
    value = net(seen).amax(dim=1)  # <- cause
    with torch.no_grad():
        target = reward + 0.8 * old(then).amax(dim=1)
    loss = F.mse_loss(value, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
