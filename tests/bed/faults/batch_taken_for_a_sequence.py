"""A transformer for tables gets (rows, features), and takes the rows of a batch for the positions of one sequence.

expect: samples-mix
source: PyTorch's documentation of nn.TransformerEncoderLayer and nn.MultiheadAttention: an input of two axes is one unbatched sequence
"""

import torch
from torch import nn

torch.manual_seed(0)


class Tab(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(9, 32)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True), 2)
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        return self.out(self.enc(self.proj(x)))  # <- cause


net = Tab()
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
crit = nn.CrossEntropyLoss()
w = torch.randn(9, 3)
for it in range(50):
    x = torch.randn(32, 9)
    y = (x @ w).argmax(1)
    opt.zero_grad()
    loss = crit(net(x), y)
    loss.backward()
    opt.step()
print(loss.item())
