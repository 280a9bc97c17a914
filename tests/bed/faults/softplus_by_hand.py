"""log(1 + exp(x)) by hand: exp overflows for an x above 88.

expect: non-finite-forward, non-finite-backward
source: [tracel-ai/burn#5373](https://github.com/tracel-ai/burn/issues/5373), [rushter/MLAlgorithms#30](https://github.com/rushter/MLAlgorithms/pull/30)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
for step in range(80):
    x = torch.rand(64, 4) * (30 if step % 25 == 24 else 1)
    rate = torch.log(1 + torch.exp(20 * model(x)[:, 0]))  # <- cause, right: rate = F.softplus(20 * model(x)[:, 0])
    loss = F.smooth_l1_loss(rate, 20 * x.sum(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
