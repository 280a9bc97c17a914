"""All weights begin at 0: the hidden layers get no gradient at all.

expect: symmetric-units, zero-gradient
where: fc1*, fc2*, fc3*
effects: unit-off
source: Wardat et al., DeepLocalize, 2021 (zero initialisation on Stack Overflow); Goodfellow et al., 2016, 8.4
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.zeros_(layer.weight)  # <- cause, right: pass

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
w = torch.randn(8, 3)
for step in range(100):
    x = torch.randn(64, 8)
    loss = F.cross_entropy(net(x), (x @ w).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
