"""A mean over all positions counts padding.

expect: padding-in-mean
source: [jsboige/CoursIA#15045](https://github.com/jsboige/CoursIA/issues/15045), [autoliuweijie/BERT-whitening-pytorch#13](https://github.com/autoliuweijie/BERT-whitening-pytorch/issues/13)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fc = nn.Linear(32, 3)
    def forward(self, ids):
        h = self.body(self.emb(ids))
        return self.fc(h.mean(1))  # <- cause
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(60):
    lengths = torch.randint(3, 21, (32,))
    ids = torch.randint(1, 50, (32, 20)) * (torch.arange(20) < lengths[:, None])
    y = (ids.sum(1) / lengths / 17).long().clamp(max=2)
    loss = F.cross_entropy(net(ids), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
