"""Cox partial likelihood: a log-cumsum-exp over the batch sorted by time."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 32), nn.ELU(), nn.Linear(32, 1))
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
w = torch.randn(6)
for step in range(60):
    x = torch.randn(64, 6)
    t = torch.distributions.Exponential((0.7 * x @ w).exp()).sample()
    event = (torch.rand(64) < 0.7).float()
    i = t.argsort(descending=True)
    r = net(x[i]).squeeze(1)
    loss = -((r - r.logcumsumexp(0)) * event[i]).sum() / event.sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
