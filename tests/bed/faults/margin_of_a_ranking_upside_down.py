"""margin_ranking_loss gets -1 for pairs whose first score is to be the larger one.

expect: worse-preferred
source: PyTorch's documentation of margin_ranking_loss: with y = 1 the first input is to rank higher
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
liked = torch.randn(300, 10) + 0.4
disliked = torch.randn(300, 10) - 0.4
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(80):
    rows = torch.randint(0, 300, (32,))
    positive_scores, negative_scores = model(liked[rows]), model(disliked[rows])
    loss = F.margin_ranking_loss(positive_scores, negative_scores, -torch.ones(32, 1), margin=0.5)  # <- cause, right: loss = F.margin_ranking_loss(positive_scores, negative_scores, torch.ones(32, 1), margin=0.5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
