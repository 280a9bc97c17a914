"""torch.where picks the safe branch, and the gradient of the other one is NaN.

expect: non-finite-backward, non-finite-forward
source: [pytorch/pytorch#52248](https://github.com/pytorch/pytorch/issues/52248), [#68425](https://github.com/pytorch/pytorch/issues/68425)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Log(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x):
        h = self.inner(x)
        h = torch.where(h > 0, torch.sqrt(h), 0.1 * h)  # <- cause, right: h = torch.where(h > 0, torch.sqrt(h.clamp(min=1e-6)), 0.1 * h)
        return self.outer(h)


model = Log()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(4, 1)
for step in range(80):
    x = torch.randn(32, 4)
    loss = F.mse_loss(model(x), x @ w)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
