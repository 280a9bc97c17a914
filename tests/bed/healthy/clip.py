"""Contrastive learning of pairs with a learnt temperature (CLIP)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
A, B = torch.randn(6, 16) / 2, torch.randn(6, 12) / 2


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.caption = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 16))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pictures, captions):
        a = F.normalize(self.picture(pictures), dim=-1)
        b = F.normalize(self.caption(captions), dim=-1)
        return self.log_scale.exp() * a @ b.T


model = CLIP()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
for step in range(100):
    hidden = torch.randn(48, 6)
    logits = model(torch.tanh(hidden @ A), torch.tanh(hidden @ B))
    labels = torch.arange(48)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
