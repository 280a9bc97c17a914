"""The step of a range is forgotten: each batch begins one sample after the last one, and most samples are never seen.

expect: few-samples
where: input
source: Humbatova et al., 2020 (wrong selection of training data); [intel/unet#35](https://github.com/intel/unet/issues/35)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
size = 32
for epoch in range(2):
    order = torch.randperm(len(x))
    for i in range(len(x) // size):
        rows = order[i : i + size]  # <- cause, right: rows = order[i * size : (i + 1) * size]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
