"""A student learns the features of a larger network whose dropout is on.

expect: teacher-in-training
source: Romero et al., FitNets: hints for thin deep nets, 2015, equation 3; PyTorch's documentation of torch.nn.Module.eval
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
large = nn.Sequential(nn.Linear(10, 96), nn.GELU(), nn.Dropout(0.3), nn.Linear(96, 96), nn.GELU(), nn.Dropout(0.3), nn.Linear(96, 16))
for p in large.parameters():
    p.requires_grad_(False)
small = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Linear(32, 16))
optimizer = torch.optim.AdamW(small.parameters(), lr=2e-3)
for step in range(60):
    x = torch.randn(48, 10)
    features = small(x)
    hints = large(x)  # <- cause
    loss = F.mse_loss(features, hints)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
