"""A feature is computed in numpy: the gradient ends there.

expect: no-gradient
where: features.*
source: PyTorch FAQ and forum: numpy does not record a graph
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(8, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        h = self.features(x)
        h = torch.from_numpy(np.sin(h.detach().numpy()))  # <- cause, right: h = torch.sin(h)
        return self.head(h)


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(8, 1)
for step in range(120):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model(x), torch.sin(x @ w))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
