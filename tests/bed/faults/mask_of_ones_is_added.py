"""A boolean mask is added to the scores as 0 and 1: it hides nothing.

expect: mask-without-effect, sees-the-future
source: [karpathy/minGPT#75](https://github.com/karpathy/minGPT/issues/75) (a mask that is not low enough), [zai-org/GLM-4-Voice#182](https://github.com/zai-org/GLM-4-Voice/issues/182)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V, T, D = 10, 12, 32


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, V)
        self.register_buffer("mask", torch.tril(torch.ones(T, T)))

    def forward(self, tokens):
        h = self.embed(tokens) + self.places.weight
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / D**0.5
        scores = scores + self.mask  # <- cause, right: scores = scores.masked_fill(self.mask == 0, float("-inf"))
        return self.out(h + scores.softmax(-1) @ v)  # <- cause


model = Decoder()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    tokens = torch.randint(V, (64, T + 1))
    tokens[:, 6:] = tokens[:, :7]
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
