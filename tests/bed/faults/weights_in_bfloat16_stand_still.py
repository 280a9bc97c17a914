"""Weights in bfloat16 with a small rate: every update is rounded away.

expect: stuck-update
where: *.weight
source: [kyegomez/SingLoRA#6](https://github.com/kyegomez/SingLoRA/issues/6); Zamirai et al., Revisiting bfloat16
 training, 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 16)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
nn.init.normal_(model[0].weight)
nn.init.normal_(model[2].weight)
model = model.to(torch.bfloat16)  # <- cause, right: pass
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for step in range(100):
    y = torch.randint(5, (64,))
    x = (centres[y] + torch.randn(64, 16)).to(model[0].weight.dtype)
    loss = F.cross_entropy(model(x).float(), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- cause
print("loss", round(loss.item(), 3))
