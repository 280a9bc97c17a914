"""An L2 penalty a thousand times too strong: the weights shrink to nothing.

expect: penalty-dominates
effects: update-too-large
source: Zhang et al., AUTOTRAINER, 2021; Humbatova et al., 2020 (wrong regularisation)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    batch = torch.randint(len(x), (64,))
    error = F.cross_entropy(model(x[batch]), y[batch])
    penalty = sum(p.square().sum() for p in model.parameters())
    loss = error + 1.0 * penalty  # <- cause, right: loss = error + 1e-4 * penalty
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
