"""A reentrant checkpoint around the first block, whose input needs no gradient: the block gets none.

expect: no-gradient
where: first.*
source: [torch.utils.checkpoint](https://docs.pytorch.org/docs/stable/checkpoint.html) (none of the inputs have requires_grad)
"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=True)  # <- cause, right: h = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=False)
        return self.second(h)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.tanh(2 * x[:, :1] - x[:, 1:2]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
