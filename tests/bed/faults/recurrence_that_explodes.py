"""A recurrent weight of spectral radius 2 over 30 steps, without clipping.

expect: exploding-gradient
where: *
effects: update-too-large, learning-rate-too-high, loss-spike, non-finite-forward, non-finite-backward, saturated
source: Pascanu et al., 2013; Zhang et al., AUTOTRAINER, 2021 (exploding gradient)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.step, self.out = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.step.weight.copy_(2.0 * torch.linalg.qr(torch.randn(16, 16))[0])  # <- cause, right: self.step.weight.copy_(0.9 * torch.linalg.qr(torch.randn(16, 16))[0])

    def forward(self, x):
        h = torch.zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = F.relu(self.step(h) + self.inp(x[:, t]))
        return self.out(h)


model = Linear()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(60):
    x = torch.randn(16, 40, 3)
    loss = F.mse_loss(model(x), x[:, -4:, 0].sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
