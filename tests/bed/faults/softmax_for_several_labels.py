"""A softmax before binary cross-entropy for several labels at once: the probabilities compete.

expect: softmax-before-bce
where: A2
source: [torchgeo/torchgeo#791](https://github.com/torchgeo/torchgeo/pull/791)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class MultiLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 6))

    def forward(self, x):
        return F.softmax(self.body(x), dim=1)  # <- cause


W = torch.randn(20, 6)
model = MultiLabel()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(25):
    x = torch.randn(32, 20)
    y = (x @ W > 0).float()
    probs = model(x)
    loss = nn.BCELoss()(probs, y)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
