"""BatchNorm with momentum=0: the running statistics never move, so eval mode uses mean 0 and variance 1.

expect: norm-option
where: 1
source: [Cadene/pretrained-models.pytorch#5](https://github.com/Cadene/pretrained-models.pytorch/issues/5), [pytorch/vision#8250](https://github.com/pytorch/vision/issues/8250)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
d = load_digits()
X, Y = torch.tensor(d.data, dtype=torch.float32) / 4, torch.tensor(d.target)
model = nn.Sequential(
    nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=0.0), nn.ReLU(),  # <- cause
    nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=0.0), nn.ReLU(), nn.Linear(64, 10))  # <- cause
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    i = torch.randint(0, 1400, (64,))
    model.train()
    loss = F.cross_entropy(model(X[i]), Y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        model.eval()
        with torch.no_grad():
            print("val", (model(X[1400:]).argmax(1) == Y[1400:]).float().mean().item())
