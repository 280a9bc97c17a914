"""Scores of attention are multiplied by the root of the width, not divided: the softmax is one-hot.

expect: saturated, one-token-attention
source: Vaswani et al., Attention is all you need, 2017, 3.2.1
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.embed = nn.Embedding(200, width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, tokens):
        h = self.embed(tokens)
        scores = self.q(h) @ self.k(h).transpose(1, 2) * 16  # <- cause, right: scores = self.q(h) @ self.k(h).transpose(1, 2) / 16
        weights = torch.softmax(scores, dim=-1)  # <- cause
        return (weights @ self.v(h)).mean(1)


model = Attention()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(60):
    tokens = torch.randint(200, (16, 10))
    loss = F.cross_entropy(model(tokens), (tokens < 15).any(1).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
