"""An auxiliary loss is added as `.item()`: it changes the printed loss and nothing else.

expect: loss-part-without-gradient
effects: no-gradient
source: [thuml/predrnn-pytorch#11](https://github.com/thuml/predrnn-pytorch/issues/11)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(6, 2)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
        self.value = nn.Linear(32, 1)
        self.order = nn.Linear(32, 1)

    def forward(self, x):
        h = self.body(x)
        return self.value(h), self.order(h)


model = TwoHeads()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(64, 6)
    value, order = model(x)
    first = F.mse_loss(value, x @ w[:, :1])
    second = F.binary_cross_entropy_with_logits(order, (x @ w[:, 1:] > 0).float())
    loss = first + second.item()  # <- cause, right: loss = first + second
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("second loss", round(second.item(), 3))
