"""`state[0]` of a recurrent network with two layers is the first layer: the second one learns nothing.

expect: zero-gradient
source: PyTorch documentation of nn.LSTM (h_n of all layers); [pclucas14/GansFallingShort#2](https://github.com/pclucas14/GansFallingShort/pull/2)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
series = torch.randn(300, 8, 1).cumsum(1)
model = nn.GRU(1, 32, num_layers=2, batch_first=True)
head = nn.Linear(32, 1)
optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
for step in range(30):
    rows = torch.randint(0, 300, (32,))
    state = model(series[rows, :-1])[1]
    forecast = head(state[0])  # <- cause, right: forecast = head(state[-1])
    loss = F.mse_loss(forecast, series[rows, -1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
