"""A VAE decodes the mean: the noise is forgotten, and the deviation is only pulled to 1.

expect: noise-forgotten
source: Kingma and Welling, Auto-encoding variational Bayes, 2014, 2.4
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
for step in range(80):
    batch = x[torch.randint(len(x), (64,))]
    mean, log_variance = encoder(batch).chunk(2, 1)

    kl = -0.5 * (1 + log_variance - mean ** 2 - log_variance.exp()).sum(1).mean()
    decoded = decoder(mean)  # <- cause, right: decoded = decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
    loss = F.mse_loss(decoded, batch, reduction="none").sum(1).mean() + 0.1 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
