"""MultiplicativeLR multiplies what its function returns by the last rate, and gets powers: the rate is gone after some epochs.

expect: learning-rate-vanished
effects: stuck-update
where: learning rate
source: [PaddlePaddle/Paddle#41637](https://github.com/PaddlePaddle/Paddle/issues/41637) (compounding), [lhoyer/MIC#60](https://github.com/lhoyer/MIC/issues/60)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.8**epoch)  # <- cause, right: scheduler = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.9)
for epoch in range(14):
    for rows in torch.randperm(len(x)).split(256):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # <- cause
    scheduler.step()  # <- cause
print("loss", round(loss.item(), 3))
