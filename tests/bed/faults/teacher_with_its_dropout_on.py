"""A teacher's dropout is on while it gives targets.

expect: teacher-in-training
source: [yxuansu/TaCL#11](https://github.com/yxuansu/TaCL/issues/11), [vrvlive/knowlege-distillation#2](https://github.com/vrvlive/knowlege-distillation/issues/2)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def mlp(h):
    return nn.Sequential(nn.Linear(12, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Dropout(0.5), nn.Linear(h, 4))


w = torch.randn(12, 4)
teacher = mlp(128)
topt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for it in range(30):
    x = torch.randn(64, 12)
    y = (x @ w).argmax(1)
    loss = F.cross_entropy(teacher(x), y)
    topt.zero_grad()
    loss.backward()
    topt.step()
student = mlp(24)
opt = torch.optim.Adam(student.parameters(), lr=1e-3)
T = 3.0
for it in range(60):
    x = torch.randn(32, 12)
    y = (x @ w).argmax(1)
    s = student(x)
    with torch.no_grad():
        t = teacher(x)  # <- cause
    loss = F.cross_entropy(s, y) + T * T * F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
