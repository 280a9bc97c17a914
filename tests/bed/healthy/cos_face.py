"""CosFace: cosine logits minus a margin, scale 64."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
conv = nn.Sequential(
    nn.Conv2d(1, 8, 3, 2),
    nn.PReLU(),
    nn.Conv2d(8, 16, 3, 2),
    nn.PReLU(),
    nn.Flatten(),
    nn.Linear(16 * 4, 16),
    nn.BatchNorm1d(16),
)
centre = nn.Parameter(0.01 * torch.randn(20, 16))
opt = torch.optim.Adam([*conv.parameters(), centre], lr=3e-3)
ids = torch.randn(20, 1, 12, 12)
for step in range(60):
    y = torch.randint(20, (64,))
    f = F.normalize(conv(ids[y] + 0.5 * torch.randn(64, 1, 12, 12)))
    cos = f @ F.normalize(centre).t()
    loss = F.cross_entropy(64.0 * (cos - 0.35 * F.one_hot(y, 20)), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
