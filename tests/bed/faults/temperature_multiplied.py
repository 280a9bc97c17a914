"""InfoNCE multiplies by the temperature of 0.07, where it should divide: all similarities are nearly equal.

expect: scores-alike
where: logits
source: [bowang-lab/BLEEP#5](https://github.com/bowang-lab/BLEEP/issues/5)
Chen et al., SimCLR, 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
temperature = 0.07
for step in range(80):
    x = torch.randn(64, 32)
    a = F.normalize(encoder(x + 0.2 * torch.randn_like(x)), dim=1)
    b = F.normalize(encoder(x + 0.2 * torch.randn_like(x)), dim=1)
    logits = a @ b.t() * temperature  # <- cause
    labels = torch.arange(len(x))
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", loss.item())
