"""One corrupt batch fills Adam's second moment, and the updates stay tiny for hundreds of steps.

expect: stuck-update, loss-spike
where: *.weight, *.bias, loss, batch*, x*
effects: input-not-normalised
source: Molybog et al., A theory on Adam instability, 2023; Chowdhery et al., PaLM, 2022 (spikes from single batches)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(8, 1)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(110):
    x = torch.randn(32, 8)
    y = torch.sin(x @ w)
    if step == 30:
        y = y * 1e6  # <- cause, right: pass
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
