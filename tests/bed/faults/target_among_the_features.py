"""The table of features still has the column that is to be predicted.

expect: target-in-input
source: [pytorch-tabular/pytorch_tabular#21](https://github.com/pytorch-tabular/pytorch_tabular/issues/21), [neurodata/SPORF#355](https://github.com/neurodata/SPORF/issues/355)
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
random = np.random.default_rng(0)
table = random.normal(size=(2000, 9)).astype("float32")
table[:, 8] = np.tanh(table[:, 0] * table[:, 1]) + 0.5 * table[:, 2] + 0.3 * random.normal(size=2000)
names = ["a", "b", "c", "d", "e", "f", "g", "h", "price"]
features = [names.index(name) for name in names]  # <- cause, right: features = [names.index(name) for name in names if name != "price"]
x = torch.tensor(table[:, features])
y = torch.tensor(table[:, 8:])
model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    rows = torch.randint(2000, (128,))
    loss = F.mse_loss(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
