"""An MLP-Mixer on digits: linear layers along the patches and along the channels."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
X = torch.tensor(load_digits().images, dtype=torch.float32) / 8 - 1
Y = torch.tensor(load_digits().target)
P = X.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(X), 16, 4)


class Block(nn.Module):
    def __init__(self, tokens, dim):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tok = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.ch = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))

    def forward(self, x):
        x = x + self.tok(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ch(self.n2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Linear(4, 24)
        self.blocks = nn.Sequential(Block(16, 24), Block(16, 24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.emb(x))).mean(1))


net = Mixer()
opt = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 87)
for epoch in range(3):
    for b in torch.randperm(len(P)).split(64):
        loss = F.cross_entropy(net(P[b]), Y[b], label_smoothing=0.1)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
print("loss", loss.item())
