"""Keys are scaled to almost nothing: every query attends to all tokens alike.

expect: uniform-attention
where: score, query, key
source: Zhai et al., Stabilizing transformer training by preventing attention entropy collapse, 2023; Dong et al.,
 Attention is not all you need, 2021
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(24, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, tokens):
        h = self.embed(tokens)
        scores = self.query(h[:, :1]) @ self.key(h).transpose(1, 2) / 32**4  # <- cause, right: scores = self.query(h[:, :1]) @ self.key(h).transpose(1, 2) / 32**0.5
        weights = torch.softmax(scores, dim=-1)  # <- cause
        return (weights @ self.value(h))[:, 0]


model = Lookup()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(120):
    tokens = torch.randint(8, 24, (64, 16))
    wanted = torch.randint(8, (64,))
    tokens[torch.arange(64), torch.randint(1, 16, (64,))] = wanted
    loss = F.cross_entropy(model(tokens), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
