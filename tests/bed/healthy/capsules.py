"""Capsules with routing by agreement and a margin loss."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)


def squash(s):
    size = s.square().sum(-1, keepdim=True)
    return size / (1 + size) * s / (size + 1e-8).sqrt()


class Capsules(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.primary = nn.Conv2d(16, 32, 3, stride=2)
        self.weight = nn.Parameter(0.1 * torch.randn(32, 10, 8, 4))

    def forward(self, x):
        u = squash(
            self.primary(F.relu(self.conv(x))).reshape(len(x), 8, 4, -1).permute(0, 1, 3, 2).reshape(len(x), -1, 4)
        )
        votes = torch.einsum("jkdc,njc->njkd", self.weight, u)
        agreement = torch.zeros(len(x), 32, 10)
        for _ in range(2):
            v = squash((agreement.softmax(2)[..., None] * votes).sum(1))
            agreement = agreement + (votes * v[:, None]).sum(-1).detach()
        return (v.square().sum(-1) + 1e-8).sqrt()


model = Capsules()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    rows = torch.randint(len(x), (32,))
    length, wanted = model(x[rows]), F.one_hot(y[rows], 10)
    loss = (wanted * F.relu(0.9 - length) ** 2 + 0.5 * (1 - wanted) * F.relu(length - 0.1) ** 2).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x[:500]).argmax(1) == y[:500]).float().mean().item(), 3))
