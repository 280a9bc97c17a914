"""Two losses with learnt uncertainties (Kendall et al., 2018)."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
        self.value, self.kind = nn.Linear(32, 1), nn.Linear(32, 3)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        h = self.body(x)
        return self.value(h), self.kind(h)


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
w = torch.randn(6, 3) / 2
for step in range(120):
    x = torch.randn(64, 6)
    value, kind = model(x)
    losses = torch.stack([F.mse_loss(value, x @ w[:, :1]), F.cross_entropy(kind, (x @ w).argmax(1))])
    loss = (losses * (-model.log_variances).exp() + model.log_variances).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("losses", [round(each, 3) for each in losses.tolist()])
