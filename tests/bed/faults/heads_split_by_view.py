"""Heads of a GPT are split by view(B, heads, T, d) without a transpose: tokens and features mix.

expect: view-swaps-axes
where: reshape*
source: [hyunwoongko/transformer#15](https://github.com/hyunwoongko/transformer/issues/15), [reczoo/FuxiCTR#30](https://github.com/reczoo/FuxiCTR/issues/30)
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.h = h
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.ln1(x)).chunk(3, dim=-1)
        q, k, v = (t.reshape(B, self.h, T, D // self.h) for t in (q, k, v))  # <- cause
        s = q @ k.transpose(-2, -1) / math.sqrt(D // self.h)
        s = s.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf"))
        y = (s.softmax(-1) @ v).reshape(B, T, D)  # <- cause
        x = x + self.proj(y)
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(20, 32), nn.Embedding(24, 32)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 20)

    def forward(self, x):
        return self.head(self.blocks(self.tok(x) + self.pos(torch.arange(x.size(1)))))


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(12):
    seq = torch.randint(0, 20, (8, 25))
    x, y = seq[:, :-1], seq[:, 1:]
    loss = F.cross_entropy(model(x).reshape(-1, 20), y.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
