"""The generator of the parameters was used up by the optimizer: clip_grad_norm_ gets nothing and clips nothing.

expect: clipping-misplaced
source: [pytorch/pytorch#148259](https://github.com/pytorch/pytorch/issues/148259)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
series = torch.randn(64, 12, 1).cumsum(1)
model = nn.RNN(1, 32, batch_first=True)
head = nn.Linear(32, 1)
parameters = (p for module in (model, head) for p in module.parameters())
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
for step in range(80):
    inputs, targets = series[:, :-1], series[:, -1]
    loss = F.mse_loss(head(model(inputs)[0][:, -1]), targets)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)  # <- cause, right: nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
    optimizer.step()
print("loss", round(loss.item(), 3))
