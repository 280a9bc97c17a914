"""The second network gets the argmax of the first, so the first learns nothing.

expect: no-gradient
where: first.*
source: [wonbeomjang/mobile-hair-segmentation-pytorch#3](https://github.com/wonbeomjang/mobile-hair-segmentation-pytorch/issues/3)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Pipeline(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 8))
        self.second = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x):
        choice = F.one_hot(self.first(x).argmax(1), 8).float()  # <- cause, right: choice = F.softmax(self.first(x), 1)
        return self.second(choice)


model = Pipeline()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
w = torch.randn(6, 3)
for step in range(100):
    x = torch.randn(64, 6)
    loss = F.cross_entropy(model(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
