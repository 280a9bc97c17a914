"""cosine_similarity without dim compares features along the tokens.

expect: cosine-axis
where: pred
source: [facebookresearch/WMReward#11](https://github.com/facebookresearch/WMReward/issues/11)
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)
# a student net matches the token features of a (fixed) teacher
teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 48)).eval()
for p in teacher.parameters():
    p.requires_grad_(False)
student = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 48))
opt = torch.optim.AdamW(student.parameters(), lr=2e-3)
for step in range(100):
    tokens = torch.randn(16, 20, 16)  # (batch, tokens, features)
    with torch.no_grad():
        target = teacher(tokens)
    pred = student(tokens)
    loss = 1 - F.cosine_similarity(pred, target).mean()  # <- cause, right: loss = 1 - F.cosine_similarity(pred, target, dim=-1).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print("1 - cos", loss.item())
