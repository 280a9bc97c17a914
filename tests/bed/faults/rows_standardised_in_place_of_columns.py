"""A table is standardised along its rows, so each column hardly varies.

expect: input-not-normalised
where: input
source: LeCun, Bottou, Orr and Müller, Efficient backprop, 1998, 4.3; Humbatova et al., Taxonomy of real faults in deep learning systems, 2020 (wrong preprocessing)
"""

import torch
from torch import nn

torch.manual_seed(0)
n = 400
X = torch.stack(
    [torch.rand(n) * 40 + 20, torch.rand(n) * 80000 + 20000, torch.rand(n), torch.rand(n) * 5, torch.rand(n) * 300], 1
)
y = ((X[:, 0] - 40) / 12 + (X[:, 3] - 2.5) + 2 * X[:, 2] > 1).float()
X = (X - X.mean(dim=1, keepdim=True)) / X.std(dim=1, keepdim=True)  # <- cause
net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
crit = nn.BCEWithLogitsLoss()
for it in range(80):
    i = torch.randint(0, n, (32,))
    opt.zero_grad()
    loss = crit(net(X[i]).squeeze(1), y[i])
    loss.backward()
    opt.step()
print(loss.item())
