"""One corrupt batch fills Adam's second moment, and the updates stay tiny for hundreds of steps.

expect: stuck-update, loss-spike
where: *.weight, *.bias, loss
effects: input-not-normalised, targets-scale
source: Molybog et al., A theory on Adam instability, 2023; Chowdhery et al., PaLM, 2022 (spikes from single batches)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(8, 1) / 3
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(110):
    x = torch.randn(32, 8)
    y = torch.sin(x @ w)
    if step == 12:
        y = y * 1e6  # <- cause, right: pass
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
