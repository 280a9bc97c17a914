"""clip_grad_norm_ is called before backward(), when there is no gradient yet: nothing is clipped.

expect: clipping-misplaced
effects: update-too-large, saturated
source: [Cranial-XIX/FAMO#4](https://github.com/Cranial-XIX/FAMO/issues/4)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.GRU(4, 32, batch_first=True)
head = nn.Linear(32, 1)
parameters = [*model.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.05)
for step in range(100):
    x = torch.randn(32, 20, 4) * 3
    y = x.sum((1, 2))[:, None]
    states, _ = model(x)
    loss = F.mse_loss(head(states[:, -1]), y)
    optimizer.zero_grad()
    nn.utils.clip_grad_norm_(parameters, 1.0)  # <- cause, right: pass
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
