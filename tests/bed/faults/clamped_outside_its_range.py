"""The output begins above 1 and is clamped to [0, 1]: no gradient comes through.

expect: zero-gradient
effects: saturated, unit-off
source: [PyTorch forum 28628](https://discuss.pytorch.org/t/torch-round-gradient/28628) (clamp is flat outside of its range)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
nn.init.constant_(model[2].bias, 5.0)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(5, 1)
for step in range(100):
    x = torch.randn(64, 5)
    y = torch.sigmoid(x @ w)
    prediction = model(x).clamp(0, 1)  # <- cause, right: prediction = torch.sigmoid(model(x) - 5)
    loss = F.mse_loss(prediction, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
