"""A residual block adds its result to itself, x += x, and its input goes nowhere.

expect: added-to-itself
where: blocks.*
effects: no-activation
source: [werner-duvaud/muzero-general#89](https://github.com/werner-duvaud/muzero-general/issues/89), [kyegomez/BitNet#32](https://github.com/kyegomez/BitNet/issues/32)
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
d = load_digits()
X = torch.tensor(d.images, dtype=torch.float32).unsqueeze(1) / 16
Y = torch.tensor(d.target)

class ResidualBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(c)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += x  # <- cause
        return F.relu(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList([ResidualBlock(12) for _ in range(3)])
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks:
            x = b(x)
        return self.fc(x.mean((2, 3)))

net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
it = 0
for epoch in range(2):
    for idx in torch.randperm(len(X)).split(64):
        out = net(X[idx])
        loss = F.cross_entropy(out, Y[idx])
        opt.zero_grad(); loss.backward(); opt.step()
print("loss", loss.item())
