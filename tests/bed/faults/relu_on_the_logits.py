"""A ReLU after the last layer of a classifier: logits are never below 0, and units that are off stay off.

expect: relu-on-scores, softmax-before-cross-entropy, unit-off
where: 3
source: [pytorch/tutorials#1654](https://github.com/pytorch/tutorials/pull/1654), [pytorch/examples#117](https://github.com/pytorch/examples/pull/117)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
    nn.ReLU(),  # <- cause, right: nn.Identity(),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
