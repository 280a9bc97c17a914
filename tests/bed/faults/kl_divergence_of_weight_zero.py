"""The KL divergence of a VAE has the weight 0: nothing holds the noise of its code.

expect: noise-unheld
source: Higgins et al., beta-VAE, 2017; Bowman et al., Generating sentences from a continuous space, 2016
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
X = torch.tensor(load_digits().data, dtype=torch.float32) / 16
enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=1e-3)
beta = 0.0
for step in range(80):
    x = X[torch.randint(len(X), (64,))]
    mu, lv = enc(x).chunk(2, 1)
    z = mu + torch.randn_like(mu) * (0.5 * lv).exp()
    rec = F.binary_cross_entropy_with_logits(dec(z), x, reduction="sum") / 64
    kl = -0.5 * (1 + lv - mu ** 2 - lv.exp()).sum(1).mean()
    loss = rec + beta * kl  # <- cause, right: loss = rec + 1.0 * kl
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
