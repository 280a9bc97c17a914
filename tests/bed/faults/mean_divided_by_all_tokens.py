"""Mean pooling divides by the number of tokens of the whole batch.

expect: samples-mix
effects: saturated
source: [SeanLee97/AnglE#101](https://github.com/SeanLee97/AnglE/issues/101)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 32, padding_idx=0)
        self.rnn = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(64, 3)
    def forward(self, ids):
        mask = (ids != 0).float()
        h, _ = self.rnn(self.emb(ids))
        pooled = (h * mask[:, :, None]).sum(1) / mask.sum()  # <- cause, right: pooled = (h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return self.fc(pooled)
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(60):
    lengths = torch.randint(3, 13, (32,))
    ids = torch.randint(1, 50, (32, 12)) * (torch.arange(12) < lengths[:, None])
    y = (ids.sum(1) / lengths / 17).long().clamp(max=2)
    loss = F.cross_entropy(net(ids), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
