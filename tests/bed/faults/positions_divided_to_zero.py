"""The positions of a sequence are divided by its length as integers, and are 0 throughout.

expect: divided-to-zero
source: PyTorch's documentation of torch.div: rounding_mode
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
LENGTH = 20


class Track(nn.Module):
    def __init__(self):
        super().__init__()
        self.where, self.what = nn.Linear(1, 24), nn.Linear(3, 24)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 1))

    def forward(self, x):
        place = torch.arange(LENGTH, device=x.device)
        share = torch.div(place, LENGTH, rounding_mode="floor").to(x.dtype)  # <- cause
        return self.head(self.what(x) + self.where(share[:, None])).squeeze(-1)


model = Track()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(60):
    x = torch.randn(16, LENGTH, 3)
    y = x.sum(-1) * torch.linspace(0, 1, LENGTH)
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
