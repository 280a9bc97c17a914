"""kl_div gets probabilities as its input, where it expects logarithms.

expect: nll-without-log
source: [sebastian-hofstaetter/matchmaker#18](https://github.com/sebastian-hofstaetter/matchmaker/issues/18), [pytorch/pytorch#5282](https://github.com/pytorch/pytorch/issues/5282)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 6))
for parameter in teacher.parameters():
    parameter.requires_grad_(False)
teacher[2].weight.mul_(4)
student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))
optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(64, 8)
    wanted = F.softmax(teacher(x), dim=1)
    got = F.softmax(student(x), dim=1)  # <- cause, right: got = F.log_softmax(student(x), dim=1)
    loss = F.kl_div(got, wanted, reduction="batchmean")  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x = torch.randn(1000, 8)
print("agreement", round((student(x).argmax(1) == teacher(x).argmax(1)).float().mean().item(), 3))
