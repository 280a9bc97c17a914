"""A language model whose targets are not shifted: each position is to predict the token that it sees.

expect: sees-the-future
source: [huggingface/transformers#3711](https://github.com/huggingface/transformers/issues/3711), [KempnerInstitute/KempnerForge#154](https://github.com/KempnerInstitute/KempnerForge/issues/154)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V, T = 20, 24


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(V, 32), nn.Embedding(T, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.out = nn.Linear(32, V)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return self.out(self.block(self.embed(tokens) + self.place(torch.arange(T)), mask, is_causal=True))


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(80):
    text = (torch.randint(V, (16, 1)) + 3 * torch.arange(T + 1)) % V
    inputs = text[:, :-1]
    targets = text[:, :-1]  # <- cause, right: targets = text[:, 1:]
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss of the next token", round(F.cross_entropy(model(inputs).flatten(0, 1), text[:, 1:].flatten()).item(), 3))
