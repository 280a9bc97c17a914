"""An A2C's advantage keeps the critic's last axis: (N,) * (N, 1) is an N by N matrix.

expect: broadcast-in-loss
where: advantage
effects: unfittable-labels
source: [PacktPublishing/Deep-Reinforcement-Learning-Hands-On#33](https://github.com/PacktPublishing/Deep-Reinforcement-Learning-Hands-On/issues/33), [thu-ml/tianshou#155](https://github.com/thu-ml/tianshou/pull/155)
"""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 48), nn.ReLU())
        self.pi = nn.Linear(48, 4)
        self.v = nn.Linear(48, 1)

    def forward(self, x):
        x = self.body(x)
        return Categorical(logits=self.pi(x)), self.v(x)


model = ActorCritic()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
best = torch.randn(6, 4)
for step in range(80):
    state = torch.randn(48, 6)
    pi, value = model(state)
    action = pi.sample()
    reward = (action == (state @ best).argmax(1)).float().unsqueeze(1)
    advantage = reward - value.detach()  # <- cause, right: advantage = (reward - value.detach()).squeeze(1)
    policy_loss = -(pi.log_prob(action) * advantage).mean()
    value_loss = (value - reward).pow(2).mean()
    loss = policy_loss + 0.5 * value_loss - 0.01 * pi.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reward", round(reward.mean().item(), 3))
