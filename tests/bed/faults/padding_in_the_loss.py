"""Padding is a target like any other: most of the loss is about predicting padding.

expect: padding-in-loss
source: [allenai/open-instruct#632](https://github.com/allenai/open-instruct/issues/632), [EleutherAI/gpt-neo#45](https://github.com/EleutherAI/gpt-neo/pull/45)
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

torch.manual_seed(0)
PAD, V = 0, 12


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 24, padding_idx=PAD)
        self.rnn = nn.GRU(24, 32, batch_first=True)
        self.out = nn.Linear(32, V)

    def forward(self, tokens):
        return self.out(self.rnn(self.embed(tokens))[0])


model = LanguageModel()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = [torch.arange(n) % 11 + 1 for n in torch.randint(3, 25, (32,)).tolist()]
    rows = [(row + torch.randint(11, ())) % 11 + 1 for row in rows]
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    logits, wanted = model(tokens[:, :-1]), tokens[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())  # <- cause, right: loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss on tokens", round(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD).item(), 3))
