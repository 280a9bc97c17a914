"""Pictures (batch, height, width, colours) become (batch, colours, height, width) by view inside the model.

expect: view-swaps-axes
where: x, view
source: [vitrioil/Speech-Separation#4](https://github.com/vitrioil/Speech-Separation/issues/4)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 8, 3, 2, 1)
        self.f = nn.Linear(8 * 64, 4)
    def forward(self, x):
        x = x.view(-1, 3, 16, 16)  # <- cause
        return self.f(F.relu(self.c2(F.relu(self.c1(x)))).flatten(1))
m = Net()
o = torch.optim.Adam(m.parameters(), lr=1e-3)
for _ in range(10):
    x = torch.randn(16, 16, 16, 3)
    y = x.mean((1, 2)).argmax(1)
    loss = F.cross_entropy(m(x), y)
    o.zero_grad()
    loss.backward()
    o.step()
print(loss.item())
