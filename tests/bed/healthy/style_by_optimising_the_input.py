"""An input is optimised against a frozen network: the picture is the only parameter."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh()).requires_grad_(False)
style, content = torch.randn(1, 1, 12, 12), torch.randn(1, 1, 12, 12)


def gram(h):
    h = h.flatten(2)
    return h @ h.transpose(1, 2) / h.shape[2]


with torch.no_grad():
    wanted_style, wanted_content = gram(features(style)), features(content)
picture = content.clone().requires_grad_(True)
optimizer = torch.optim.Adam([picture], lr=2e-2)
for step in range(100):
    h = features(picture)
    loss = 10 * F.mse_loss(gram(h), wanted_style) + F.mse_loss(h, wanted_content)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
