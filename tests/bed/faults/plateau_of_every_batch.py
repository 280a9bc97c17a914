"""ReduceLROnPlateau gets the loss of each batch, and takes its noise for a plateau.

expect: scheduler-per-batch
where: learning rate
effects: stuck-update
source: [pytorch/pytorch#2849](https://github.com/pytorch/pytorch/issues/2849)
"""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=2, factor=0.1)
crit = nn.MSELoss()
w = torch.randn(10, 1)
X = torch.randn(400, 10)
Y = torch.sin(X @ w) + 0.3 * torch.randn(400, 1)
for epoch in range(4):
    perm = torch.randperm(400)
    for i in range(0, 400, 16):
        j = perm[i : i + 16]
        opt.zero_grad()
        loss = crit(net(X[j]), Y[j])
        loss.backward()
        opt.step()
        sched.step(loss)  # <- cause
print(loss.item(), opt.param_groups[0]["lr"])
