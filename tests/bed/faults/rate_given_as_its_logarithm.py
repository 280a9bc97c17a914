"""PoissonNLLLoss expects the logarithm of the rate and gets the rate itself, by softplus: it fits exp(rate).

expect: nll-without-log
source: [pytorch/pytorch#1779](https://github.com/pytorch/pytorch/pull/1779), PyTorch's documentation of PoissonNLLLoss (log_input)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1), nn.Softplus())
criterion = nn.PoissonNLLLoss()  # right: nn.PoissonNLLLoss(log_input=False)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(128, 5)
    counts = torch.poisson(torch.exp(x[:, :1] - 1))
    loss = criterion(model(x), counts)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
