"""A tanh as last layer for targets up to 10.

expect: targets-out-of-range, unfittable-labels
where: 3
effects: saturated
source: Wardat et al., DeepLocalize, 2021 (wrong last activation); Schoop et al., UMLAUT, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(4, 32),
    nn.ReLU(),
    nn.Linear(32, 1),
    nn.Tanh(),  # <- cause, right: nn.Identity(),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.tensor([[3.0], [-2.0], [1.0], [2.0]])
for step in range(100):
    x = torch.randn(64, 4)
    loss = F.mse_loss(model(x), x @ w)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
