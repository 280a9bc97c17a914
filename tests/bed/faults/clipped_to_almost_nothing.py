"""clip_grad_norm_ with a limit of 1e-3, in SGD.

expect: always-clipped
where: *
source: Pascanu et al., On the difficulty of training recurrent networks, 2013; Cao et al., 2022 (gradient clipping)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.LSTM(4, 24, batch_first=True)
head = nn.Linear(24, 1)
parameters = [*model.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
for step in range(100):
    x = torch.randn(32, 10, 4)
    output, _ = model(x)
    loss = F.mse_loss(head(output[:, -1]), x[:, -3:, 0].sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1e-3)  # <- cause, right: nn.utils.clip_grad_norm_(parameters, 2.0)
    optimizer.step()
print("loss", round(loss.item(), 3))
