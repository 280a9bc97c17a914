"""A sparse autoencoder: only the four largest of 128 units pass their value on."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):
        units = self.encode(x)
        best = units.topk(4, dim=1)
        return self.decode(torch.zeros_like(units).scatter(1, best.indices, best.values))


model = Sparse()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    batch = x[torch.randint(len(x), (128,))]
    loss = F.mse_loss(model(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
