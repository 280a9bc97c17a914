"""Logits of 10 classes pass a tanh and are divided by 4 before cross-entropy.

expect: scores-alike
where: logits, A2
source: PyTorch's documentation of CrossEntropyLoss: unnormalised logits
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
m = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
o = torch.optim.Adam(m.parameters(), lr=1e-3)
W = torch.randn(20, 10)
for _ in range(12):
    x = torch.randn(64, 20)
    y = (x @ W).argmax(1)
    logits = torch.tanh(m(x)) / 4  # <- cause
    loss = F.cross_entropy(logits, y)
    o.zero_grad()
    loss.backward()
    o.step()
print(loss.item())
