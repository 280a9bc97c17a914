"""A sentence without a token: its row of attention is -inf everywhere.

expect: non-finite-forward
where: attention
source: [pytorch/pytorch#40932](https://github.com/pytorch/pytorch/issues/40932), [#41508](https://github.com/pytorch/pytorch/issues/41508)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16, padding_idx=0)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 2)

    def forward(self, tokens):
        h, padding = self.embed(tokens), tokens == 0
        scores = self.q(h) @ self.k(h).transpose(1, 2) / 4
        scores = scores.masked_fill(padding[:, None], float("-inf"))  # <- cause, right: scores = scores.masked_fill(padding[:, None], -1e9)
        weights = torch.softmax(scores, dim=-1)  # <- cause
        return self.out((weights @ self.v(h)).mean(1))


model = Encoder()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    lengths = torch.randint(1, 9, (32,))
    if step == 50:
        lengths[3] = 0
    tokens = torch.randint(1, 10, (32, 8)) * (torch.arange(8) < lengths[:, None])
    loss = F.cross_entropy(model(tokens), (tokens == 3).any(1).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
