"""Contrastive learning of digits with the NT-Xent loss (SimCLR)."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 0.6
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
projector = nn.Sequential(nn.ReLU(), nn.Linear(32, 16))
optimizer = torch.optim.Adam([*encoder.parameters(), *projector.parameters()], lr=2e-3)


def view(batch):
    return batch * (torch.rand_like(batch) > 0.2) + 0.1 * torch.randn_like(batch)


for step in range(100):
    batch = x[torch.randint(len(x), (48,))]
    z = F.normalize(projector(encoder(torch.cat([view(batch), view(batch)]))), dim=1)
    similarity = z @ z.T / 0.2
    similarity = similarity.masked_fill(torch.eye(96, dtype=torch.bool), float("-inf"))
    partner = (torch.arange(96) + 48) % 96
    loss = F.cross_entropy(similarity, partner)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
