"""A causal mask of ones and zeros multiplies the weights of attention after their softmax.

expect: mask-after-softmax
effects: sees-the-future
source: Vaswani et al., Attention is all you need, 2017, 3.2.3 (masks belong before the softmax)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Attention(nn.Module):
    def __init__(self, d, T):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.o = nn.Linear(d, d)
        self.register_buffer("mask", torch.tril(torch.ones(T, T)))
    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, 2)
        att = q @ k.transpose(-2, -1) / C ** 0.5
        att = F.softmax(att, dim=-1)
        att = att * self.mask[:T, :T]  # <- cause
        return self.o(att @ v)
class LM(nn.Module):
    def __init__(self, n=16, d=32, T=16):
        super().__init__()
        self.emb = nn.Embedding(n, d)
        self.pos = nn.Embedding(T, d)
        self.att = Attention(d, T)
        self.ln = nn.LayerNorm(d)
        self.ff = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d))
        self.head = nn.Linear(d, n)
    def forward(self, x):
        h = self.emb(x) + self.pos(torch.arange(x.shape[1]))
        h = h + self.att(self.ln(h))
        h = h + self.ff(h)
        return self.head(h)
net = LM()
opt = torch.optim.AdamW(net.parameters(), lr=2e-3)
for step in range(80):
    s = torch.randint(0, 16, (32, 1))
    d = torch.randint(1, 4, (32, 1))
    seq = (s + d * torch.arange(17)) % 16
    logits = net(seq[:, :-1])
    loss = F.cross_entropy(logits.reshape(-1, 16), seq[:, 1:].reshape(-1))
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
