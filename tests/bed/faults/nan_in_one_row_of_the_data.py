"""One missing value in the data: NaN in one batch, and in every weight after it.

expect: non-finite-forward
where: x*, batch*, table*, getitem*, input*
source: Islam et al., 2019 (data bugs); Humbatova et al., 2020 (missing values in training data)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
table = torch.randn(640, 7)
wanted = (table[:, :3].sum(1, keepdim=True) > 0).float()
table[411, 5] = float("nan")  # <- cause, right: table[411, 5] = 0.0
model = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(5):
    for rows in torch.arange(640).split(32):
        batch = table[rows]  # <- cause
        loss = F.binary_cross_entropy_with_logits(model(batch), wanted[rows])  # <- cause
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
