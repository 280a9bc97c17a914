"""The head is replaced after the optimizer was made.

expect: not-in-optimizer, nothing-to-step
where: head.*
source: [LaurentMazare/ocaml-torch#36](https://github.com/LaurentMazare/ocaml-torch/issues/36), [floneum/kalosm#285](https://github.com/floneum/kalosm/pull/285)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 100)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
model.head = nn.Linear(16, 4)  # <- cause, right: model.head = nn.Linear(16, 4); optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
centres = torch.randn(4, 8)
for step in range(100):
    y = torch.randint(4, (32,))
    x = centres[y] + 0.8 * torch.randn(32, 8)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
