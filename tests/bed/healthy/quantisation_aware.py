"""Quantisation-aware training with fake quantisation of weights and a straight-through gradient."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)


class QuantLinear(nn.Linear):
    def forward(self, x):
        scale = self.weight.detach().abs().max() / 7
        rounded = torch.round(self.weight / scale) * scale
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


model = nn.Sequential(QuantLinear(64, 48), nn.ReLU(), QuantLinear(48, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
