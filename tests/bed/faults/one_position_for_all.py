"""pe[:, length] in place of pe[:, :length]: every position gets the same encoding.

expect: one-position
source: [DiffPoseTalk/DiffPoseTalk#20](https://github.com/DiffPoseTalk/DiffPoseTalk/issues/20)
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class PositionalEncoding(nn.Module):
    def __init__(self, d, max_len=100):
        super().__init__()
        pe = torch.zeros(max_len, d)
        pos = torch.arange(max_len).float()[:, None]
        div = torch.exp(torch.arange(0, d, 2).float() * (-math.log(10000.0) / d))
        pe[:, 0::2] = torch.sin(pos * div)
        pe[:, 1::2] = torch.cos(pos * div)
        self.register_buffer("pe", pe[None])
    def forward(self, x):
        return x + self.pe[:, x.shape[1], :]  # <- cause, right: return x + self.pe[:, : x.shape[1], :]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(20, 32)
        self.pos = PositionalEncoding(32)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2)
        self.out = nn.Linear(32, 12)
    def forward(self, x):
        return self.out(self.enc(self.pos(self.emb(x))).mean(1))
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(60):
    x = torch.randint(1, 20, (32, 12))
    where = torch.randint(0, 12, (32,))
    x[torch.arange(32), where] = 0
    loss = F.cross_entropy(net(x), where)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
