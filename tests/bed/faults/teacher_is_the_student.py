"""The teacher of a consistency loss is the student itself, not a copy of it: the loss is 0 from the first step on.

expect: compared-with-itself
source: [andri27-ts/Reinforcement-Learning#14](https://github.com/andri27-ts/Reinforcement-Learning/issues/14), [datawhalechina/easy-rl#117](https://github.com/datawhalechina/easy-rl/pull/117)
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
pretrained = copy.deepcopy(student)
nn.init.normal_(pretrained[2].weight)
teacher = student  # <- cause, right: teacher = pretrained
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
for step in range(60):
    x = torch.randn(64, 8)
    with torch.no_grad():
        wanted = teacher(x)
    loss = F.mse_loss(student(x), wanted)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(F.mse_loss(student(x), pretrained(x)).item(), 3))
