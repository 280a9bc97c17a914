"""The model is made anew after the optimizer, which moves the old one.

expect: nothing-to-step, not-in-optimizer
where: *.weight, *.bias
source: [Optimizers](https://docs.pytorch.org/docs/stable/optim.html) (parameters made anew after the optimizer); [namisan/mt-dnn#40](https://github.com/namisan/mt-dnn/pull/40)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def build():
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 1))


model = build()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # <- cause
model = build()  # <- cause, right: pass
w = torch.randn(10, 1)
for step in range(100):
    x = torch.randn(64, 10)
    loss = F.mse_loss(model(x), x @ w)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
