"""The head is in two optimizers, which both move it.

expect: in-two-optimizers
where: head, 2, 2.*, head.*
source: Humbatova et al., 2020 (wrong optimiser set-up); PyTorch's documentation of parameter groups
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
body, head = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), nn.Linear(32, 1)
slow = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.01, momentum=0.9)  # <- cause, right: slow = torch.optim.SGD(body.parameters(), lr=0.01, momentum=0.9)
fast = torch.optim.Adam(head.parameters(), lr=0.3)  # <- cause, right: fast = torch.optim.Adam(head.parameters(), lr=0.005)
w = torch.randn(8, 1)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.mse_loss(head(body(x)), x @ w)
    slow.zero_grad()
    fast.zero_grad()
    loss.backward()
    slow.step()
    fast.step()
print("loss", round(loss.item(), 3))
