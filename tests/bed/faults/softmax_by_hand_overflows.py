"""A softmax by hand without subtracting the maximum: exp overflows for a large logit.

expect: non-finite-forward
effects: initial-loss, update-too-large
source: Zhang et al., DEBAR, 2020; Goodfellow et al., Deep Learning, 2016, 4.1 (overflow of softmax)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    rows = torch.randint(len(x), (64,))
    scores = model(x[rows]) * 250
    powers = torch.exp(scores)  # <- cause, right: powers = torch.exp(scores - scores.max(1, keepdim=True).values)
    p = powers / powers.sum(1, keepdim=True)
    loss = -(p[range(64), y[rows]] + 1e-6).log().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
