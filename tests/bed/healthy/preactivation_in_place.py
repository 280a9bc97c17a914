"""A pre-activation ResNet with ReLUs in place."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
d = load_digits()
X = torch.tensor(d.images, dtype=torch.float32)[:, None] / 8 - 1
Y = torch.tensor(d.target)


class PreActBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(i), nn.BatchNorm2d(o)
        self.conv1 = nn.Conv2d(i, o, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(i, o, 1, bias=False) if i != o else None

    def forward(self, x):
        out = self.relu(self.bn1(x))
        shortcut = self.shortcut(out) if self.shortcut is not None else x
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out += shortcut
        return out


net = nn.Sequential(
    nn.Conv2d(1, 12, 3, padding=1, bias=False),
    PreActBlock(12, 12),
    PreActBlock(12, 24),
    nn.BatchNorm2d(24),
    nn.ReLU(inplace=True),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(24, 10),
)
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
for epoch in range(2):
    for b in torch.randperm(len(X)).split(64):
        loss = F.cross_entropy(net(X[b]), Y[b])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
print("loss", loss.item())
