"""The training loop takes the softmax of the logits before cross_entropy.

expect: softmax-before-cross-entropy
source: Islam et al., A comprehensive study on deep learning bug characteristics, 2019 (API misuse)
"""

import torch
from torch import nn

torch.manual_seed(0)
centres = torch.randn(5, 6) * 1.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


net = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(100):
    y = torch.randint(5, (32,))
    x = centres[y] + torch.randn(32, 6)
    optimizer.zero_grad()
    outputs = torch.softmax(net(x), dim=-1)  # <- cause, right: outputs = net(x)
    loss = criterion(outputs, y)  # <- cause
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
