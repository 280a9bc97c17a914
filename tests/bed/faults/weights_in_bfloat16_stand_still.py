"""Weights in bfloat16 with a small rate: every update is rounded away.

expect: stuck-update
where: *.weight, weight
source: [kyegomez/SingLoRA#6](https://github.com/kyegomez/SingLoRA/issues/6); Zamirai et al., Revisiting bfloat16 training, 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 512) / 2
model = nn.Linear(512, 4)
nn.init.uniform_(model.weight, 0.03, 0.06)
model = model.to(torch.bfloat16)  # <- cause, right: pass
optimizer = torch.optim.Adam(model.parameters(), lr=4e-5)
for step in range(100):
    y = torch.randint(4, (64,))
    x = (centres[y] + torch.randn(64, 512)).to(model.weight.dtype)
    loss = F.cross_entropy(model(x).float(), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- cause
print("loss", round(loss.item(), 3))
