"""Sentences are padded to 120 tokens at the end, and the last output of an LSTM has read only padding for long.

expect: padding-read
where: lstm
source: [bentrevett/pytorch-sentiment-analysis#86](https://github.com/bentrevett/pytorch-sentiment-analysis/issues/86)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Sentiment(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)

    def forward(self, x):
        out, _ = self.lstm(self.embedding(x))
        return self.fc(out[:, -1]).squeeze(1)  # <- cause


def batch(n=16, length=120):
    lengths = torch.randint(5, 20, (n,))
    x = torch.zeros(n, length, dtype=torch.long)
    for i, count in enumerate(lengths):
        x[i, :count] = torch.randint(1, 50, (int(count),))
    y = ((x > 25).sum(1) * 2 > lengths).float()
    return x, y


model = Sentiment()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(8):
    x, y = batch()
    loss = F.binary_cross_entropy_with_logits(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
