"""SGD with momentum=1.0: velocity never decays and the training swings ever wider.

expect: optimizer-option
where: SGD
source: Sutskever et al., On the importance of initialization and momentum, 2013: a momentum below 1
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
X = torch.tensor(digits.data, dtype=torch.float32) / 16
Y = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=1.0)  # <- cause
for step in range(100):
    i = torch.randint(0, len(X), (64,))
    loss = F.cross_entropy(model(X[i]), Y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
