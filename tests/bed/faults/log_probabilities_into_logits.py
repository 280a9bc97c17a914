"""The logarithm of a sigmoid goes into a loss that expects logits: no probability can be above a half.

expect: sigmoid-twice
source: [pytorch/pytorch#49844](https://github.com/pytorch/pytorch/issues/49844) (comment); PyTorch forum
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = torch.randn(600, 12)
clicks = (features @ torch.randn(12, 1) > 0).float()
model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    rows = torch.randint(0, 600, (64,))
    scores = F.logsigmoid(model(features[rows]))  # <- cause, right: scores = model(features[rows])
    loss = F.binary_cross_entropy_with_logits(scores, clicks[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
