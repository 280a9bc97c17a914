"""Four linear layers without an activation between them are one linear layer.

expect: no-activation
where: 0, 1, 2, 3, 0.weight, 1.weight
source: Nikanjam et al., NeuraLint, 2021; Cao et al., DeepFD, 2022 (missing activation); Schoop et al., UMLAUT, 2021
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import make_circles
from torch import nn

torch.manual_seed(0)
points, kinds = make_circles(800, factor=0.5, noise=0.05, random_state=0)
x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(kinds)
model = nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 2))  # <- cause, right: model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    rows = torch.randint(800, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
