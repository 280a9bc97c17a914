"""Pictures of 0 to 1 are divided by 255 once more: inputs of 0.002.

expect: input-not-normalised
where: input*, x*, batch*, getitem*
source: [pkmital/pycadl#5](https://github.com/pkmital/pycadl/pull/5), [4uiiurz1/pytorch-nested-unet#62](https://github.com/4uiiurz1/pytorch-nested-unet/issues/62)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
x = x / 255  # <- cause, right: x = x / 0.5 - 0.6
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
