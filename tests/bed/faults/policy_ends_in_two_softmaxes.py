"""The network of a policy ends in a softmax, and its probabilities go through another.

expect: softmax-twice
source: [OpenRLHF/OpenRLHF#473](https://github.com/OpenRLHF/OpenRLHF/pull/473), [THUDM/WebRL#39](https://github.com/THUDM/WebRL/issues/39)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3), nn.Softmax(-1))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for step in range(80):
    states = torch.randn(64, 4)
    probabilities = F.softmax(policy(states), -1)  # <- cause, right: probabilities = policy(states)
    actions = torch.multinomial(probabilities, 1).squeeze(1)
    rewards = (actions == states[:, :3].argmax(1)).float()
    log_p = torch.log(probabilities.gather(1, actions[:, None]).squeeze(1))
    loss = -((rewards - rewards.mean()) * log_p).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reward", round(rewards.mean().item(), 3))
