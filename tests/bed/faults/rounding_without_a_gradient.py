"""Activations are rounded to integers: the layers before get a gradient of 0.

expect: zero-gradient
where: encoder.*
source: [PyTorch forum 28628](https://discuss.pytorch.org/t/torch-round-gradient/28628)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class Compressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64))

    def forward(self, x):
        code = self.encoder(x) * 4
        code = torch.round(code)  # <- cause, right: code = code + (torch.round(code) - code).detach()
        return self.decoder(code / 4)


model = Compressor()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(120):
    batch = x[torch.randint(len(x), (64,))]
    loss = F.mse_loss(model(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
