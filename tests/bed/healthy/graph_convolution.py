"""A graph convolutional network with dropout, trained on a few labelled nodes."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
N = 80
kind = torch.randint(4, (N,))
adjacency = (torch.rand(N, N) < torch.where(kind[:, None] == kind, 0.15, 0.01)).float()
adjacency = ((adjacency + adjacency.T + torch.eye(N)) > 0).float()
degree = adjacency.sum(1).rsqrt()
spread = degree[:, None] * adjacency * degree
features = torch.randn(N, 8) + F.one_hot(kind, 8) * 1.5


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = F.relu(self.w1(spread @ x))
        return self.w2(spread @ F.dropout(h, 0.3, self.training))


model = GCN()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
labelled = torch.arange(N) < 40
for epoch in range(100):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(features)[labelled], kind[labelled])
    loss.backward()
    optimizer.step()
    if epoch % 20 == 19:
        model.eval()
        with torch.no_grad():
            accuracy = (model(features).argmax(1) == kind)[~labelled].float().mean().item()
print("accuracy", round(accuracy, 3))
