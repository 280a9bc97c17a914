"""`self.attention(x)` is called and its result is not used.

expect: ignored-input, no-gradient
where: mixer, mixer.*
source: Humbatova et al., 2020 (a layer that is not connected); Nikanjam et al., NeuraLint, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.mixer, self.out = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x):
        h = self.inp(x)
        torch.relu(self.mixer(h))  # <- cause, right: h = torch.relu(self.mixer(h))
        return self.out(h)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), x[:, :1] * x[:, 1:2])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
