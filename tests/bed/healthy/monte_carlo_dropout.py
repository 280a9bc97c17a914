"""Regression with a variance of its own, and several passes with dropout on to see how sure it is."""

import torch
import torch.nn as nn

torch.manual_seed(0)
x = torch.rand(400, 1) * 8 - 4
y = torch.sin(x) + (0.05 + 0.1 * x.abs()) * torch.randn_like(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(
            nn.Linear(1, 64), nn.ReLU(), nn.Dropout(0.05), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.05)
        )
        self.mu, self.log_var = nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x):
        h = self.b(x)
        return self.mu(h), self.log_var(h)


net = Net()
opt = torch.optim.Adam(net.parameters(), 5e-3, weight_decay=1e-5)
for ep in range(6):
    for b in torch.randperm(400).split(64):
        mu, lv = net(x[b])
        loss = (torch.exp(-lv) * (y[b] - mu) ** 2 + lv).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    net.train()
    with torch.no_grad():
        draws = torch.stack([net(x[:50])[0] for _ in range(10)])
print(loss.item(), draws.std(0).mean().item())
