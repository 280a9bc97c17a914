"""Dropout is applied to the logits: half of the class scores are 0 at each step.

expect: dropout-on-outputs
where: drop
source: Srivastava et al., Dropout, 2014: input and hidden units
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
d = load_digits()
X, Y = torch.tensor(d.images, dtype=torch.float32)[:, None] / 16, torch.tensor(d.target)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4, 64)
        self.fc2 = nn.Linear(64, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.drop(self.fc2(x))  # <- cause


model = CNN()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(80):
    i = torch.randint(0, len(X), (64,))
    loss = F.cross_entropy(model(X[i]), Y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
