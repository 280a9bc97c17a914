"""A VAE that subtracts its KL divergence: the loss falls without bound as the code leaves the prior.

expect: loss-ascends
effects: update-too-large, loss-spike, learning-rate-too-high, non-finite-forward, penalty-dominates
source: [FluxML/model-zoo#147](https://github.com/FluxML/model-zoo/pull/147); [wiseodd/generative-models#43](https://github.com/wiseodd/generative-models/issues/43)
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
for step in range(100):
    batch = x[torch.randint(len(x), (64,))]
    mean, log_variance = encoder(batch).chunk(2, dim=1)
    code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    reconstruction = F.binary_cross_entropy_with_logits(decoder(code), batch, reduction="sum") / 64
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    loss = reconstruction - kl  # <- cause, right: loss = reconstruction + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("evidence bound", round((reconstruction + kl).item(), 1))
