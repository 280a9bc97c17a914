"""A graph attention network: -inf where there is no edge, softmax over the neighbours."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
N = 60
kind = torch.randint(3, (N,))
edges = (torch.rand(N, N) < torch.where(kind[:, None] == kind, 0.2, 0.03)) | torch.eye(N, dtype=torch.bool)
features = F.one_hot(kind, 3).float() + torch.randn(N, 3)


class GAT(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.lin = nn.Linear(width, out, bias=False)
        self.source, self.target = nn.Linear(out, 1, bias=False), nn.Linear(out, 1, bias=False)

    def forward(self, x):
        h = self.lin(x)
        scores = F.leaky_relu(self.source(h) + self.target(h).T, 0.2)
        return torch.softmax(scores.masked_fill(~edges, float("-inf")), dim=1) @ h


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GAT(3, 16), GAT(16, 3)

    def forward(self, x):
        return self.second(F.elu(self.first(x)))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
train = torch.arange(N) < 30
for step in range(100):
    loss = F.cross_entropy(model(features)[train], kind[train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(features).argmax(1) == kind)[~train].float().mean().item(), 3))
