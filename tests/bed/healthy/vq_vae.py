"""A VQ-VAE: nearest entries of a codebook, a straight-through estimator and a commitment loss."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.codes = nn.Parameter(torch.randn(24, 8) * 0.3)
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        z = self.encoder(x).reshape(-1, 4, 8)
        nearest = torch.cdist(z, self.codes.expand(len(z), -1, -1)).argmin(-1)
        q = self.codes[nearest]
        through = z + (q - z).detach()
        extra = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(through.flatten(1)), extra


model = VQ()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(120):
    batch = x[torch.randint(len(x), (64,))]
    output, extra = model(batch)
    loss = F.mse_loss(output, batch) + extra
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
