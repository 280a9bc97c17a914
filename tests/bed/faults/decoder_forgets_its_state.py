"""A decoder begins with the encoder's state at each token: it knows the last token alone.

expect: state-not-carried
source: Sutskever et al., Sequence to sequence learning, 2014; PyTorch's tutorial on translation with a sequence to sequence network
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Seq2Seq(nn.Module):
    def __init__(self, n=20, d=32):
        super().__init__()
        self.emb = nn.Embedding(n, d)
        self.encoder = nn.GRU(d, d, batch_first=True)
        self.decoder = nn.GRU(d, d, batch_first=True)
        self.out = nn.Linear(d, n)
    def forward(self, src, tgt):
        _, hidden = self.encoder(self.emb(src))
        logits = []
        token = torch.zeros(len(src), dtype=torch.long)
        for t in range(tgt.shape[1]):
            o, _ = self.decoder(self.emb(token)[:, None], hidden)  # <- cause, right: o, hidden = self.decoder(self.emb(token)[:, None], hidden)
            logits.append(self.out(o[:, 0]))
            token = tgt[:, t]
        return torch.stack(logits, 1)
net = Seq2Seq()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(60):
    src = torch.randint(1, 20, (32, 8))
    tgt = src.flip(1)
    loss = F.cross_entropy(net(src, tgt).reshape(-1, 20), tgt.reshape(-1))
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
