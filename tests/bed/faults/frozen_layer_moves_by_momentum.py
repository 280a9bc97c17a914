"""A layer is frozen after some epochs, but its last gradient stays: zero_grad(set_to_none=False) and momentum move it on.

expect: frozen-by-name
where: 0.weight
source: [PyTorch forum 153740](https://discuss.pytorch.org/t/why-there-is-still-a-small-change-in-frozen-layer-parameters/153740)
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
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
for epoch in range(4):
    if epoch == 1:
        for parameter in model[0].parameters():
            parameter.requires_grad = False  # <- cause
    for rows in torch.randperm(len(x)).split(90):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
