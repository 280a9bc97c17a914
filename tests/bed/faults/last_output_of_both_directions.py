"""Of a bidirectional LSTM the output at the last token is used, of which one half has read that token alone.

expect: direction-unread
source: PyTorch's documentation of nn.LSTM: h_n of a bidirectional LSTM is not the last element of output
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(64, 2)
    def forward(self, x):
        out, _ = self.lstm(self.emb(x))
        return self.fc(out[:, -1, :])  # <- cause, right: return self.fc(out.mean(1))
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(60):
    x = torch.randint(0, 20, (32, 20))
    y = (x[:, 0] > 9).long()
    loss = F.cross_entropy(net(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
