"""`n * [ResBlock()]` is one block n times: all blocks share their weights.

expect: shared-layers
where: blocks, blocks.*
source: [deep-learning-with-pytorch/dlwpt-code#89](https://github.com/deep-learning-with-pytorch/dlwpt-code/issues/89), [zalandoresearch/pytorch-vq-vae#2](https://github.com/zalandoresearch/pytorch-vq-vae/issues/2)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) + x


class Network(nn.Module):
    def __init__(self, channels=8, count=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(count * [Block(channels)]))  # <- cause, right: self.blocks = nn.Sequential(*[Block(channels) for _ in range(count)])
        self.head = nn.Linear(channels * 16, 10)

    def forward(self, x):
        out = F.max_pool2d(torch.relu(self.stem(x)), 2)
        return self.head(self.blocks(out).flatten(1))


model = Network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
for step in range(60):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows].view(-1, 1, 8, 8)), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
