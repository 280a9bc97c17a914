"""The weights of attention go through a softmax twice: they are nearly uniform.

expect: softmax-twice
source: [MenghaoGuo/AutoDeeplab#18](https://github.com/MenghaoGuo/AutoDeeplab/issues/18) (weights that go through a softmax twice)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).mT / 32 ** 0.5).softmax(-1)
        weights = weights.softmax(-1)  # <- cause, right: weights = F.dropout(weights, 0.1, self.training)
        return x + self.out(weights @ self.v(x))


embedding, body, head = nn.Embedding(30, 32), nn.Sequential(Block(), Block()), nn.Linear(32, 2)
optimizer = torch.optim.Adam([*embedding.parameters(), *body.parameters(), *head.parameters()], lr=2e-3)
for step in range(80):
    tokens = torch.randint(0, 30, (32, 10))
    labels = (tokens[:, 0] == tokens[:, 5:].max(1).values).long() | (tokens[:, 0] > 20).long()
    loss = F.cross_entropy(head(body(embedding(tokens)).mean(1)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
