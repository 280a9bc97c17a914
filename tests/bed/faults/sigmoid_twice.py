"""A sigmoid as last layer, and BCEWithLogitsLoss, which has its own.

expect: sigmoid-twice
where: out
source: [Turoad/lanedet#32](https://github.com/Turoad/lanedet/issues/32), [cvg/glue-factory#89](https://github.com/cvg/glue-factory/issues/89)
"""

import torch
from sklearn.datasets import make_moons
from torch import nn

torch.manual_seed(0)
points, sides = make_moons(1000, noise=0.15, random_state=0)
x = torch.tensor(points, dtype=torch.float32) - torch.tensor([0.5, 0.25])
y = torch.tensor(sides, dtype=torch.float32)[:, None]


class Moons(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        return torch.sigmoid(self.out(self.body(x)))  # <- cause, right: return self.out(self.body(x))


model = Moons()
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    batch = torch.randint(len(x), (64,))
    loss = criterion(model(x[batch]), y[batch])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(criterion(model(x), y).item(), 3))
