"""A curriculum: the sequences to copy grow longer, so the loss rises at each stage."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Copy(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(9, 64, batch_first=True), nn.Linear(64, 8)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


net = Copy()
opt = torch.optim.Adam(net.parameters(), lr=5e-3)
for stage, length in enumerate((1, 2, 4, 6)):
    for _ in range(20):
        bits = (torch.rand(16, length, 8) < 0.5).float()
        x = torch.zeros(16, 2 * length + 1, 9)
        x[:, :length, :8] = bits
        x[:, length, 8] = 1
        loss = F.binary_cross_entropy_with_logits(net(x)[:, length + 1 :], bits)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
print(loss.item())
