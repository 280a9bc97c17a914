"""A VAE multiplies its noise by exp(logvar), the variance, in place of the deviation.

expect: noise-scale
source: [rachtsingh/ibp_vae#3](https://github.com/rachtsingh/ibp_vae/issues/3), [ctallec/world-models#13](https://github.com/ctallec/world-models/issues/13)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
X = torch.tensor(load_digits().data, dtype=torch.float32) / 16
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc21 = nn.Linear(64, 8)
        self.fc22 = nn.Linear(64, 8)
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    def reparametrize(self, mu, logvar):
        noise = torch.randn_like(mu)
        return mu + noise * logvar.exp()  # <- cause, right: return mu + noise * (0.5 * logvar).exp()
    def forward(self, x):
        h = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        return self.dec(self.reparametrize(mu, logvar)), mu, logvar
model = VAE()
opt = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(100):
    x = X[torch.randint(len(X), (64,))]
    out, mu, logvar = model(x)
    bce = F.binary_cross_entropy_with_logits(out, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = (bce + kld) / len(x)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
