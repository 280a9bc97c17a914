"""A consistency term whose both sides are computed under no_grad.

expect: loss-part-without-gradient
source: [oclivegriffin/crosscode#3](https://github.com/oclivegriffin/crosscode/pull/3) (an auxiliary loss without gradient)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 12)
model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 5))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def consistency(x):
    with torch.no_grad():  # <- cause, right: if True:
        first = F.log_softmax(model(x + torch.randn_like(x)), dim=1)
        second = F.softmax(model(x), dim=1)
        return F.kl_div(first, second, reduction="batchmean")  # <- cause


for step in range(100):
    y = torch.randint(5, (32,))
    x = centres[y] + torch.randn(32, 12)
    labelled = F.cross_entropy(model(x), y)
    unlabelled = consistency(centres[torch.randint(5, (128,))] + torch.randn(128, 12))
    loss = labelled + 10 * unlabelled  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("unlabelled", round(unlabelled.item(), 4))
