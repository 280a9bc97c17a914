"""The vocabulary is of another tokenizer, so every word is <unk>: the model sees the same number everywhere.

expect: zero-batch
where: x
source: Islam et al., 2019 (data bugs)
Humbatova et al., 2020 (wrong tokenisation)
"""

import torch
from torch import nn

torch.manual_seed(0)
WORDS = [f"Word{i}" for i in range(40)]
vocab = {"<pad>": 0, "<unk>": 1, **{w.lower(): i + 2 for i, w in enumerate(WORDS)}}


def encode(words):
    return torch.tensor([vocab.get(w, vocab["<unk>"]) for w in words])  # <- cause


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(vocab), 16, padding_idx=0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        return self.net(self.embedding(x).mean(1))  # <- cause


model = Bag()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(60):
    ids = torch.randint(0, 40, (32, 12))
    x = torch.stack([encode([WORDS[j] for j in row]) for row in ids.tolist()])
    y = (ids.float().mean(1) > 19.5).long()
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
