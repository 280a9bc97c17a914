"""A masked language model: the loss on masked tokens alone, by ignore_index."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V, T, MASK = 16, 12, 0


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(V, 32), nn.Embedding(T, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(32, V)

    def forward(self, tokens):
        return self.out(self.encoder(self.embed(tokens) + self.places.weight))


model = Masked()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(80):
    tokens = 1 + (torch.randint(V - 1, (32, 1)) + torch.arange(T)) % (V - 1)
    hidden = torch.rand(32, T) < 0.2
    hidden[:, 0] = True
    loss = F.cross_entropy(
        model(tokens.masked_fill(hidden, MASK)).flatten(0, 1), tokens.masked_fill(~hidden, -100).flatten()
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
