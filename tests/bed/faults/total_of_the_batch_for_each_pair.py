"""A factorisation adds up the products of all pairs of a batch, and each pair gets the total.

expect: samples-mix
source: Koren, Bell and Volinsky, Matrix factorization techniques for recommender systems, 2009 (one product for each pair); PyTorch's documentation of torch.sum: without dim it is the sum of all elements
"""

import torch
from torch import nn

torch.manual_seed(0)


class MF(nn.Module):
    def __init__(self, users=50, items=40, k=8):
        super().__init__()
        self.u = nn.Embedding(users, k)
        self.v = nn.Embedding(items, k)
        self.bu = nn.Embedding(users, 1)
        self.bv = nn.Embedding(items, 1)

    def forward(self, u, v):
        return (self.u(u) * self.v(v)).sum() + self.bu(u).squeeze(1) + self.bv(v).squeeze(1)  # <- cause


P, Q = torch.randn(50, 4), torch.randn(40, 4)
net = MF()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
crit = nn.MSELoss()
for it in range(80):
    u = torch.randint(0, 50, (64,))
    v = torch.randint(0, 40, (64,))
    r = (P[u] * Q[v]).sum(1) / 2 + 3
    opt.zero_grad()
    loss = crit(net(u, v), r)
    loss.backward()
    opt.step()
print(loss.item())
