"""SGD with lr=1e-7: nothing moves.

expect: update-too-small
where: *.weight, *.bias
source: Wardat et al., DeepLocalize, 2021; Schoop et al., UMLAUT, 2021 (learning rate out of range)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(8, 1)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)  # <- cause, right: optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    x = torch.randn(32, 8)
    loss = F.mse_loss(model(x), x @ w)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
