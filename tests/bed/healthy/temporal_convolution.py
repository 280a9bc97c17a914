"""Causal dilated convolutions, as in WaveNet."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Embedding(8, 16)
        self.layers = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(3))
        self.out = nn.Conv1d(16, 8, 1)

    def forward(self, tokens):
        x = self.inp(tokens).transpose(1, 2)
        for i, layer in enumerate(self.layers):
            a, b = layer(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return self.out(x)


model = Causal()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    tokens = (torch.randint(8, (32, 1)) + torch.randint(1, 4, (32, 1)) * torch.arange(13)) % 8
    loss = F.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
