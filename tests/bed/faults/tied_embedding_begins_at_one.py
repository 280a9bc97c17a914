"""A language model ties its output to an embedding of deviation 1: the first loss is many times ln V.

expect: initial-loss
source: [karpathy/minGPT](https://github.com/karpathy/minGPT) (initialisation of 0.02); Karpathy's recipe, 2019
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V, D, T = 30, 64, 12


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        nn.init.normal_(self.embed.weight, std=1.0)  # <- cause, right: nn.init.normal_(self.embed.weight, std=0.05)
        self.rnn = nn.GRU(D, D, batch_first=True)

    def forward(self, tokens):
        h, _ = self.rnn(self.embed(tokens))
        return (self.embed(tokens) + h) @ self.embed.weight.T


model = LanguageModel()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(100):
    start = torch.randint(V, (32, 1))
    tokens = (start + torch.arange(T + 1) * 7) % V
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
