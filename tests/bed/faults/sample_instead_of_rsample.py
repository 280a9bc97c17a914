"""A VAE draws its latent code by sample(), not rsample(): no gradient of the reconstruction reaches the encoder.

expect: loss-part-without-gradient, no-gradient
source: [jankrepl/deepdow#106](https://github.com/jankrepl/deepdow/pull/106); PyTorch's documentation of torch.distributions: rsample is the pathwise derivative
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence

torch.manual_seed(0)
x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
encoder, decoder = nn.Linear(64, 16), nn.Linear(8, 64)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
for step in range(80):
    batch = x[torch.randint(len(x), (64,))]
    mean, log_deviation = encoder(batch).chunk(2, dim=1)
    posterior = Normal(mean, log_deviation.exp())
    code = posterior.sample()  # <- cause, right: code = posterior.rsample()
    fit = F.mse_loss(decoder(code), batch, reduction="none").sum(1).mean()
    loss = fit + 0.01 * kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("fit", round(fit.item(), 3))
