"""A student matches the features of a frozen teacher by their cosine, token by token."""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 48)).eval().requires_grad_(False)
student = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 48))
opt = torch.optim.AdamW(student.parameters(), lr=2e-3)
for step in range(100):
    tokens = torch.randn(16, 20, 16)
    target = F.normalize(teacher(tokens), dim=-1)
    pred = student(tokens)
    loss = 1 - F.cosine_similarity(pred, target, dim=-1).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print("1 - cos", loss.item())
