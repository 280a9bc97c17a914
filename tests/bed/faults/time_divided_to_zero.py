"""The time of a diffusion is divided as an integer, and is 0 in each sample.

expect: divided-to-zero
source: PyTorch's documentation of torch.floor_divide; Ho et al., Denoising diffusion probabilistic models, 2020
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
T = 100
beta = torch.linspace(1e-4, 0.05, T)
abar = torch.cumprod(1 - beta, 0)


class Eps(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 32)
        self.inp = nn.Linear(2, 32)
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        t = (t // T).float().unsqueeze(1)  # <- cause
        return self.net(self.inp(x) + self.time(t))


model = Eps()
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
for it in range(80):
    a = torch.rand(64) * 6.28
    x0 = torch.stack([a.cos(), a.sin()], 1)
    t = torch.randint(0, T, (64,))
    e = torch.randn_like(x0)
    xt = abar[t].sqrt()[:, None] * x0 + (1 - abar[t]).sqrt()[:, None] * e
    loss = F.mse_loss(model(xt, t), e)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
