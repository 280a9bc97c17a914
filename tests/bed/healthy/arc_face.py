"""ArcFace with scale 30 and margin 0.5 on normalised features."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class ArcFace(nn.Module):
    def __init__(self, d, n, s=30.0, m=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.empty(n, d))
        nn.init.xavier_uniform_(self.w)
        self.s, self.m = s, m

    def forward(self, x, y):
        cos = F.linear(F.normalize(x), F.normalize(self.w)).clamp(-1 + 1e-6, 1 - 1e-6)
        sin = (1 - cos * cos).sqrt()
        phi = cos * math.cos(self.m) - sin * math.sin(self.m)
        phi = torch.where(cos > math.cos(math.pi - self.m), phi, cos - math.sin(math.pi - self.m) * self.m)
        one = F.one_hot(y, cos.shape[1]).bool()
        return self.s * torch.where(one, phi, cos)


body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16))
arc = ArcFace(16, 10)
opt = torch.optim.SGD([*body.parameters(), *arc.parameters()], lr=0.05, momentum=0.9, weight_decay=5e-4)
faces = torch.randn(10, 20)
for step in range(80):
    y = torch.randint(10, (64,))
    loss = F.cross_entropy(arc(body(faces[y] + 0.4 * torch.randn(64, 20)), y), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
