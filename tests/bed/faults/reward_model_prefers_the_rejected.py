"""A reward model is trained to score the rejected answer above the chosen one.

expect: worse-preferred
source: Ouyang et al., Training language models to follow instructions, 2022, equation 1
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
chosen = torch.randn(400, 16) + 0.5
rejected = torch.randn(400, 16) - 0.5
reward_model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(reward_model.parameters(), lr=1e-3)
for step in range(80):
    rows = torch.randint(0, 400, (32,))
    chosen_rewards = reward_model(chosen[rows])
    rejected_rewards = reward_model(rejected[rows])
    loss = -F.logsigmoid(rejected_rewards - chosen_rewards).mean()  # <- cause, right: loss = -F.logsigmoid(chosen_rewards - rejected_rewards).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
