"""Weights from a normal distribution of deviation 3 saturate every tanh.

expect: saturated
effects: initial-loss
where: 0*, 1*, 2*, 3*, A1, A2
source: Glorot and Bengio, 2010; Zhang et al., AUTOTRAINER, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 2))
for parameter in model[:4].parameters():
    nn.init.normal_(parameter, std=3.0)  # <- cause, right: nn.init.normal_(parameter, std=0.08)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
w = torch.randn(128, 2)
for step in range(100):
    x = torch.randn(64, 128)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
