"""A beta-VAE with beta = 1000: the code says nothing about the picture.

expect: penalty-dominates
source: Bowman et al., Generating sentences from a continuous space, 2016; Alemi et al., Fixing a broken ELBO, 2018
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, 4), nn.Linear(64, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        return self.decoder(code), 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()


vae = VAE()
optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
for step in range(120):
    batch = x[torch.randint(len(x), (64,))]
    output, kl = vae(batch)
    reconstruction = F.mse_loss(output, batch, reduction="none").sum(1).mean()
    loss = reconstruction + 1000 * kl  # <- cause, right: loss = reconstruction + 0.01 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("reconstruction", round(reconstruction.item(), 3))
