"""nll_loss gets the softmax, not its logarithm.

expect: nll-without-log
source: [AnubhavGupta3377/Text-Classification-Models-Pytorch#9](https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9), [clvrai/ACGAN-PyTorch#4](https://github.com/clvrai/ACGAN-PyTorch/pull/4)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(1)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16 - 0.3
y = torch.tensor(labels)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(100):
    batch = torch.randint(len(x), (32,))
    out = F.softmax(model(x[batch]), dim=1)  # <- cause, right: out = F.log_softmax(model(x[batch]), dim=1)
    loss = F.nll_loss(out, y[batch])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
