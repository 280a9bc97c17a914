"""The loss is the cosine similarity itself, not 1 minus it: predictions move away from their targets.

expect: loss-ascends
source: [Kim-Minseon/RoCL#3](https://github.com/Kim-Minseon/RoCL/issues/3), [facebookresearch/simsiam#44](https://github.com/facebookresearch/simsiam/issues/44)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
truth = torch.randn(10, 8)
model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(100):
    x = torch.randn(64, 10)
    target = torch.tanh(x @ truth)
    similarity = F.cosine_similarity(model(x), target)  # <- cause
    loss = similarity.mean()  # <- cause, right: loss = (1 - similarity).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("similarity", round(similarity.mean().item(), 3))
