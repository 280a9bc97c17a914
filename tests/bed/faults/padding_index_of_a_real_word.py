"""padding_idx=0, but word 0 is the most frequent word of the data: its embedding is 0 and never learns.

expect: zero-gradient, no-gradient
where: embed.*
source: [huggingface/transformers#10200](https://github.com/huggingface/transformers/pull/10200), [FGA-DIKU/BONSAI#168](https://github.com/FGA-DIKU/BONSAI/issues/168)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(2, 8, padding_idx=0)  # <- cause, right: self.embed = nn.Embedding(2, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, word):
        return self.out(self.embed(word))


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(60):
    word = (torch.rand(32) < 0.3).long()
    loss = F.cross_entropy(model(word), 1 - word)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
