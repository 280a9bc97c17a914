"""Logits are (time, batch, words) and targets (batch, time): flattened, each prediction gets another's target.

expect: targets-of-others
where: y
source: PyTorch's documentation of nn.GRU: without batch_first its first axis is the time
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class CharRNN(nn.Module):
    def __init__(self, v=12, h=48):
        super().__init__()
        self.emb = nn.Embedding(v, h)
        self.gru = nn.GRU(h, h)
        self.fc = nn.Linear(h, v)

    def forward(self, x):
        out, _ = self.gru(self.emb(x))
        return self.fc(out)


net = CharRNN()
opt = torch.optim.Adam(net.parameters(), lr=5e-3)
for step in range(6):
    start = torch.randint(0, 12, (16, 1))
    seq = (start + torch.arange(21)) % 12
    x, y = seq[:, :-1], seq[:, 1:]
    logits = net(x.t())
    loss = F.cross_entropy(logits.reshape(-1, 12), y.reshape(-1))  # <- cause
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    opt.step()
print("loss", loss.item())
