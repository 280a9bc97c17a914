"""F.normalize without dim normalises (batch, tokens, features) over the tokens.

expect: cosine-axis
effects: initial-loss
source: PyTorch's documentation of torch.nn.functional.normalize: dim is 1 by default
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.k = nn.Linear(16, 16)
        self.temperature = 0.1
    def forward(self, x, y):
        q, k = F.normalize(self.q(x)), F.normalize(self.k(y))  # <- cause, right: q, k = F.normalize(self.q(x), dim=-1), F.normalize(self.k(y), dim=-1)
        return q @ k.transpose(1, 2) / self.temperature
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(60):
    x = torch.randn(16, 10, 16)
    order = torch.stack([torch.randperm(10) for _ in range(16)])
    y = torch.gather(x, 1, order[:, :, None].expand(-1, -1, 16)) + 0.3 * torch.randn(16, 10, 16)
    target = order.argsort(1)
    scores = net(x, y)
    loss = F.cross_entropy(scores.reshape(-1, 10), target.reshape(-1))
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
