"""SGD with a rate of 3: the loss oscillates and never falls.

expect: learning-rate-too-high, update-too-large
where: loss, *.weight, *.bias
effects: loss-spike, unit-off, zero-gradient
source: Wardat et al., DeepLocalize, 2021; Zhang et al., AUTOTRAINER, 2021 (oscillating loss)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=3.0)  # <- cause, right: optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
