"""The loss is a negative error, so the training makes it worse.

expect: loss-ascends
effects: update-too-large, loss-spike, learning-rate-too-high, non-finite-forward
source: Humbatova et al., 2020 (wrong loss function calculation)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
centres = torch.randn(3, 6)
for step in range(100):
    y = torch.randint(3, (48,))
    x = centres[y] + 0.7 * torch.randn(48, 6)
    log_probabilities = F.log_softmax(net(x), dim=1)
    loss = log_probabilities[range(48), y].mean()  # <- cause, right: loss = -log_probabilities[range(48), y].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((log_probabilities.argmax(1) == y).float().mean().item(), 3))
