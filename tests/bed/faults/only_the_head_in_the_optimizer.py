"""The optimizer gets the head alone, though all is to be trained.

expect: not-in-optimizer
where: rnn.*, embed.*
source: [zjunlp/HVPNeT#5](https://github.com/zjunlp/HVPNeT/issues/5)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


model = Tagger()
optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)  # <- cause, right: optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    tokens = torch.randint(12, (32, 10))
    y = (tokens.cumsum(1) % 2).long()
    y[:, 1:] = (tokens[:, 1:] > tokens[:, :-1]).long()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
