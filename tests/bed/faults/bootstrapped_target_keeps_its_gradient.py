"""The target of a DQN is computed by the same network with its gradient: it is trained to meet the prediction.

expect: trained-target
source: [philtabor/Deep-Q-Learning-Paper-To-Code#16](https://github.com/philtabor/Deep-Q-Learning-Paper-To-Code/issues/16), [datawhalechina/easy-rl#117](https://github.com/datawhalechina/easy-rl/pull/117)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
move = torch.randn(3, 6) * 0.3
for step in range(100):
    state = torch.randn(64, 6)
    action = torch.randint(3, (64,))
    following = 0.9 * state + move[action]
    reward = -following.square().mean(1)
    value = model(state).gather(1, action[:, None])[:, 0]
    target = reward + 0.9 * model(following).max(1).values  # <- cause, right: target = (reward + 0.9 * model(following).max(1).values).detach()
    loss = F.smooth_l1_loss(value, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
