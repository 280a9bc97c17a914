"""Low-rank adaptation of a frozen network: B begins at 0."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class LoRA(nn.Module):
    def __init__(self, linear, rank=4):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T


base = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 5))
model = nn.Sequential(*[LoRA(each) if isinstance(each, nn.Linear) else each for each in base])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
centres = torch.randn(5, 16)
for step in range(100):
    y = torch.randint(5, (64,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(64, 16)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
