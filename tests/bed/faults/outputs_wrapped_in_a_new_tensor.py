"""torch.tensor([...]) of outputs makes a new leaf: the outputs are cut off.

expect: no-gradient
where: scorer.*
source: [open-mmlab/mmpose#2788](https://github.com/open-mmlab/mmpose/issues/2788) (a tensor wrapped in torch.tensor)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.scorer = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, options):
        scores = [self.scorer(option)[:, 0].tolist() for option in options]  # <- cause, right: scores = [self.scorer(option)[:, 0] for option in options]
        return torch.tensor(scores).T * self.scale  # <- cause, right: return torch.stack(scores).T * self.scale


model = Ranker()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(6)
for step in range(100):
    options = torch.randn(4, 32, 6)
    best = (options @ w).argmax(0)
    loss = F.cross_entropy(model(options), best)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
