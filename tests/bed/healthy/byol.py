"""Self-supervised learning without negatives: an online and a slow target network (BYOL)."""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 0.6
online = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
predictor = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
target = copy.deepcopy(online).requires_grad_(False)
optimizer = torch.optim.Adam([*online.parameters(), *predictor.parameters()], lr=2e-3)


def view(batch):
    return batch * (torch.rand_like(batch) > 0.2) + 0.1 * torch.randn_like(batch)


for step in range(80):
    batch = x[torch.randint(len(x), (64,))]
    a, b = view(batch), view(batch)
    loss = 0.0
    for first, second in ((a, b), (b, a)):
        with torch.no_grad():
            wanted = target(second)
        loss = loss + (2 - 2 * F.cosine_similarity(predictor(online(first)), wanted, dim=1)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
print("loss", round(loss.item(), 3))
