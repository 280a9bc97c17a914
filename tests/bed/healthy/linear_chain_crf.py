"""A linear-chain CRF: partition function by the forward algorithm."""

import torch
from torch import nn

torch.manual_seed(0)
emb, rnn, lin = nn.Embedding(30, 16), nn.LSTM(16, 16, batch_first=True, bidirectional=True), nn.Linear(32, 4)
trans = nn.Parameter(0.1 * torch.randn(4, 4))
ps = [*emb.parameters(), *rnn.parameters(), *lin.parameters(), trans]
opt = torch.optim.Adam(ps, lr=1e-2)
for step in range(50):
    w = torch.randint(30, (16, 8))
    tags = (w + w.roll(1, 1)) % 4
    e = lin(rnn(emb(w))[0])
    alpha = e[:, 0]
    for t in range(1, 8):
        alpha = torch.logsumexp(alpha[:, :, None] + trans, 1) + e[:, t]
    gold = e.gather(2, tags[..., None]).squeeze(2).sum(1) + trans[tags[:, :-1], tags[:, 1:]].sum(1)
    loss = (alpha.logsumexp(1) - gold).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
