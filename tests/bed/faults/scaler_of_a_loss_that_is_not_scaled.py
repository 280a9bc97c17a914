"""The result of scaler.scale(loss) is dropped, backward() is called on the loss itself, and scaler.step() divides the gradients by the scale: they are 65536 times too small.

expect: unscaled-loss
effects: update-too-small
source: [Lightning-AI/pytorch-lightning#4148](https://github.com/Lightning-AI/pytorch-lightning/issues/4148)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler("cpu")
for step in range(100):
    rows = torch.randint(len(x), (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    scaler.scale(loss)
    loss.backward()  # <- cause, right: scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
print("loss", round(loss.item(), 3))
