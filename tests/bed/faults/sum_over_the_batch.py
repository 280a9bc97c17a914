"""The loss is a sum over the batch, with a learning rate for means.

expect: sum-reduction
effects: update-too-large, learning-rate-too-high, loss-spike, unit-off, zero-gradient
source: Humbatova et al., Taxonomy of real faults in deep learning systems, 2020 (wrong loss); the option `reduction` of the losses
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
criterion = nn.CrossEntropyLoss(reduction="sum")  # <- cause, right: criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    batch = torch.randint(len(x), (128,))
    loss = criterion(model(x[batch]), y[batch])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
