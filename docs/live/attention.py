"""One head of causal self-attention predicts the next of four tokens."""

import math

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.embedding(tokens)
        q, k, v = self.query(x), self.key(x), self.value(x)
        scores = q @ k.T / math.sqrt(q.shape[-1])
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        return self.head(weights @ v)


torch.manual_seed(0)
tokens, following = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2, 1, 0])

model = Attention(vocabulary=3, width=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

for _ in range(20):
    optimizer.zero_grad()
    logits = model(tokens)
    loss = nn.functional.cross_entropy(logits, following)
    loss.backward()
    optimizer.step()
