"""Micro-batches with very different numbers of tokens count alike: each loss is its own mean.

expect: unequal-micro-batches
source: [huggingface/transformers#34191](https://github.com/huggingface/transformers/pull/34191), [meta-pytorch/torchtune#1875](https://github.com/meta-pytorch/torchtune/pull/1875)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V = 10


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(V, 16), nn.Linear(16, V)

    def forward(self, tokens):
        return self.out(torch.tanh(self.embed(tokens)))


model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(80):
    parts = [torch.randint(V, (n,)) for n in (400, 4, 4, 4)]
    total = sum(map(len, parts))
    optimizer.zero_grad()
    for number, tokens in enumerate(parts):
        wanted = (3 * tokens + 1) % V if number == 0 else torch.randint(V, tokens.shape)
        loss = F.cross_entropy(model(tokens), wanted) / 4  # <- cause, right: loss = F.cross_entropy(model(tokens), wanted, reduction="sum") / total
        loss.backward()
    optimizer.step()
tokens = torch.arange(V)
print("loss", round(F.cross_entropy(model(tokens), (3 * tokens + 1) % V).item(), 3))
