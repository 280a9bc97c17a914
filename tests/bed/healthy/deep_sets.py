"""Deep sets: sets of different sizes are padded, and the sum over the elements leaves the padding out."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.element = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32))
        self.whole = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x, mask):
        return self.whole((self.element(x) * mask[..., None]).sum(1))[:, 0]


model = DeepSets()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    mask = (torch.arange(8) < torch.randint(1, 9, (64, 1))).float()
    x = torch.rand(64, 8, 1) * mask[..., None]
    loss = F.mse_loss(model(x, mask), x.sum((1, 2)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
