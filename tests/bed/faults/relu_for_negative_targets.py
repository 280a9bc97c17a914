"""A ReLU as last layer, where half of the targets are negative.

expect: targets-out-of-range, unfittable-labels
where: 3
effects: unit-off, zero-gradient
source: Wardat et al., DeepLocalize, 2021; Cao et al., DeepFD, 2022 (wrong activation of the output layer)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(2)
regression = nn.Sequential(
    nn.Linear(6, 24),
    nn.ReLU(),
    nn.Linear(24, 1),
    nn.ReLU(),  # <- cause, right: nn.Identity(),
)
optimizer = torch.optim.SGD(regression.parameters(), lr=0.05)
slopes = torch.randn(6, 1)
for step in range(100):
    x = torch.randn(64, 6)
    loss = F.mse_loss(regression(x), x @ slopes)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
