"""Sentences are sorted by their lengths to be packed, and the labels are not.

expect: targets-of-others
source: [facebookresearch/InferSent#51](https://github.com/facebookresearch/InferSent/issues/51)
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(30, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.fc = nn.Linear(32, 2)
    def forward(self, x, lengths):
        lengths, order = lengths.sort(descending=True)
        x = x[order]  # <- cause
        packed = pack_padded_sequence(self.emb(x), lengths, batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(h[-1])
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(60):
    lengths = torch.randint(4, 13, (32,))
    x = torch.randint(1, 30, (32, 12)) * (torch.arange(12) < lengths[:, None])
    y = (x[:, 0] > 15).long()
    loss = F.cross_entropy(net(x, lengths), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
