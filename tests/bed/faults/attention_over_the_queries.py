"""The softmax of attention runs over the queries, not over the keys.

expect: softmax-axis
where: weights@1
source: [nerminnuraydogan/vision-transformer#1](https://github.com/nerminnuraydogan/vision-transformer/issues/1), [nerdai/llms-from-scratch-rs#30](https://github.com/nerdai/llms-from-scratch-rs/pull/30)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / x.size(-1) ** 0.5
        weights = F.softmax(scores, dim=1)  # <- cause
        return weights @ self.v(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(30, 32)
        self.a, self.b = Attention(32), Attention(32)
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        h = self.emb(x)
        h = h + self.a(h)
        h = h + self.b(h)
        return self.out(h.mean(1))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(15):
    x = torch.randint(0, 30, (16, 12))
    y = (x.float().mean(1) / 10).long().clamp(max=2)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
