"""A hinge loss by hand with labels of 0 and 1: a label of 0 gives a loss of 1 whatever the model says.

expect: targets-out-of-range
where: y
source: [deepchem/deepchem#5017](https://github.com/deepchem/deepchem/issues/5017), [bfortuner/ml-glossary#113](https://github.com/bfortuner/ml-glossary/pull/113)
"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
w = torch.randn(8)
for step in range(80):
    x = torch.randn(64, 8)
    y = (x @ w > 0).float()  # <- cause, right: y = 2 * (x @ w > 0).float() - 1
    loss = torch.clamp(1 - y * model(x)[:, 0], min=0).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("positive", round((model(x)[:, 0] > 0).float().mean().item(), 3))
