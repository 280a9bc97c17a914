"""InfoNCE whose positive is the sample itself: the two views are never compared.

expect: compared-with-itself
source: [Lightning-Universe/lightning-bolts#695](https://github.com/Lightning-Universe/lightning-bolts/issues/695) (a sample's similarity to itself); Chen et al., SimCLR, 2020
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
for step in range(80):
    batch = x[torch.randint(len(x), (64,))]
    a = F.normalize(encoder(batch + 0.1 * torch.randn_like(batch)), dim=1)
    b = F.normalize(encoder(batch + 0.1 * torch.randn_like(batch)), dim=1)
    similarity = a @ a.T / 0.1  # <- cause, right: similarity = a @ b.T / 0.1
    loss = F.cross_entropy(similarity, torch.arange(64))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round(((a @ b.T).argmax(1) == torch.arange(64)).float().mean().item(), 3))
