"""`if step % 4:` steps at three of four batches and adds the fourth to the next: the condition is the wrong way round.

expect: accumulated-gradient
source: [eriklindernoren/PyTorch-YOLOv3#325](https://github.com/eriklindernoren/PyTorch-YOLOv3/issues/325)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = 0
for epoch in range(4):
    for rows in torch.randperm(len(x)).split(90):
        step += 1
        loss = F.cross_entropy(model(x[rows]), y[rows]) / 4
        loss.backward()
        if step % 4:  # <- cause, right: if step % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
print("loss", round(loss.item(), 3))
