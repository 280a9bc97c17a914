"""A mixture of experts with the two best of four and a balancing loss."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 3)) for _ in range(4))

    def forward(self, x):
        p = self.gate(x).softmax(1)
        best, which = p.topk(2, dim=1)
        weights = torch.zeros_like(p).scatter(1, which, best / best.sum(1, keepdim=True))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        balance = 4 * ((weights > 0).float().mean(0) * p.mean(0)).sum()
        return (weights[..., None] * outputs).sum(1), balance


model = Mixture()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
w = torch.randn(8, 3)
for step in range(100):
    x = torch.randn(64, 8)
    output, balance = model(x)
    loss = F.cross_entropy(output, (x.abs() @ w).argmax(1)) + 0.01 * balance
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
