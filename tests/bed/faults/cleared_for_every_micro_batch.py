"""zero_grad() stands inside the loop over the micro-batches: only the last of eight is used.

expect: gradient-changed
source: [bytetriper/RAE#67](https://github.com/bytetriper/RAE/issues/67), [tatsu-lab/alpaca_farm#57](https://github.com/tatsu-lab/alpaca_farm/issues/57)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for step in range(60):
    optimizer.zero_grad()
    for rows in torch.randint(len(x), (64,)).split(8):
        optimizer.zero_grad()  # <- cause, right: model.train()
        loss = F.cross_entropy(model(x[rows]), y[rows]) / 8
        loss.backward()  # <- cause
    optimizer.step()
print("loss", round(F.cross_entropy(model(x), y).item(), 3))
