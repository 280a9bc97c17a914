"""A hand-written cross-entropy at a low temperature takes the logarithm of a probability that is 0.

expect: non-finite-forward, non-finite-backward
effects: saturated, loss-spike, update-too-large, initial-loss
source: Zhang et al., Detecting numerical bugs in neural network architectures (DEBAR), 2020; Wardat et al., DeepLocalize, 2021
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(80):
    rows = torch.randint(len(x), (32,))
    p = torch.softmax(model(x[rows]) / 0.003, dim=1)
    loss = -torch.log(p[range(32), y[rows]]).mean()  # <- cause, right: loss = -torch.log(p[range(32), y[rows]] + 1e-6).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
