"""A soft decision tree: probabilities of paths weigh the leaves' distributions."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)


class Tree(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.depth = depth
        self.gates = nn.Linear(64, 2**depth - 1)
        self.leaves = nn.Parameter(torch.randn(2**depth, 10) * 0.1)

    def forward(self, x):
        right = torch.sigmoid(self.gates(x))
        paths = torch.ones(len(x), 1)
        for level in range(self.depth):
            here = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            paths = torch.stack([paths * (1 - here), paths * here], 2).flatten(1)
        return (paths @ self.leaves.softmax(1)).log()


model = Tree()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
for step in range(100):
    rows = torch.randint(len(x), (128,))
    loss = F.nll_loss(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
