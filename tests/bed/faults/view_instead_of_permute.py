"""`view(T, N, F)` instead of a transpose mixes the samples.

expect: samples-mix
source: [zhouhaoyi/Informer2020#59](https://github.com/zhouhaoyi/Informer2020/issues/59), [zamanzadeh/CARLA#16](https://github.com/zamanzadeh/CARLA/issues/16); Karpathy on the most common neural net mistakes, 2018
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(4, 16)
        self.rnn = nn.GRU(16, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        n, t, _ = x.shape
        h = torch.tanh(self.inp(x))
        h = h.view(t, n, 16)  # <- cause, right: h = h.transpose(0, 1)
        _, last = self.rnn(h)
        return self.out(last[0])


model = Attend()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(4, 3)
for step in range(100):
    x = torch.randn(32, 6, 4)
    loss = F.cross_entropy(model(x), (x.mean(1) @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
