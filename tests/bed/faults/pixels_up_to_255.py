"""Pictures of 0 to 255 go into the network as they are.

expect: input-not-normalised
where: input*, x*, batch*, pixels*, getitem*
effects: update-too-large, learning-rate-too-high, loss-spike, initial-loss, unit-off, saturated, zero-gradient
source: Schoop et al., UMLAUT, 2021 (inputs not in [-1, 1]); Humbatova et al., 2020 (missing preprocessing)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
pixels = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) * 255 / 16
pixels = pixels.round()  # <- cause, right: pixels = pixels / 127.5 - 0.6
y = torch.tensor(labels)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    rows = torch.randint(len(y), (64,))
    loss = F.cross_entropy(model(pixels[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(pixels).argmax(1) == y).float().mean().item(), 3))
