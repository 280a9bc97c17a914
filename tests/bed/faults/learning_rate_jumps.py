"""From step 60 on the rate is fifty times higher (a schedule indexed in the wrong unit).

expect: learning-rate-jump
where: optimizer, learning rate, group *, loss
effects: loss-spike, update-too-large, learning-rate-too-high, unit-off, zero-gradient
source: Humbatova et al., 2020 (wrong learning rate schedule); Zhang et al., AUTOTRAINER, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
W = torch.randn(8, 3)
for step in range(100):
    if step == 60:
        optimizer.param_groups[0]["lr"] = 5.0  # <- cause, right: optimizer.param_groups[0]["lr"] = 0.05
    x = torch.randn(64, 8)
    loss = F.cross_entropy(model(x), (x @ W).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
