"""Attention weights that sum to 1 over the batch, not over the keys.

expect: softmax-axis, samples-mix
source: [fkodom/soft-mixture-of-experts#1](https://github.com/fkodom/soft-mixture-of-experts/pull/1), [ctallec/world-models#10](https://github.com/ctallec/world-models/issues/10)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(16, 1)
        self.embed = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        h = self.embed(tokens)
        weights = F.softmax(self.score(h), dim=0)  # <- cause, right: weights = F.softmax(self.score(h), dim=1)
        return self.head((weights * h).sum(1))


model = Pool()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    tokens = torch.randint(2, 20, (32, 8))
    y = torch.randint(2, (32,))
    tokens[torch.arange(32), torch.randint(8, (32,))] = y
    loss = F.cross_entropy(model(tokens), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
