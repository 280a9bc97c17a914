"""Knowledge distillation: a frozen teacher in eval mode, soft targets at temperature 3."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(6, 12) * 1.2


def batch():
    y = torch.randint(6, (64,))
    return centres[y] + torch.randn(64, 12), y


teacher = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 6))
optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for step in range(60):
    x, y = batch()
    loss = F.cross_entropy(teacher(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
teacher.eval().requires_grad_(False)
student = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))
optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
for step in range(60):
    x, y = batch()
    with torch.no_grad():
        soft = F.softmax(teacher(x) / 3, dim=1)
    logits = student(x)
    loss = 9 * F.kl_div(F.log_softmax(logits / 3, dim=1), soft, reduction="batchmean") + F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
