"""Symbols are numbered to the last class, which is given as CTC's blank; the targets are one long row.

expect: blank-in-targets
where: y
source: PyTorch's documentation of CTCLoss: the target index cannot be blank
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(10):
    y = torch.randint(0, 8, (40,))
    scores = model(torch.randn(20, 8, 12)).log_softmax(2)
    loss = F.ctc_loss(scores, y, torch.full((8,), 20), torch.full((8,), 5), blank=7)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
