"""`out[-1]` of a batch-first LSTM is the last sample, not the last step: it is compared with the whole batch.

expect: samples-mix, ignored-input
source: [pytorch/pytorch#1538](https://github.com/pytorch/pytorch/issues/1538), [yunjey/pytorch-tutorial#151](https://github.com/yunjey/pytorch-tutorial/issues/151)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.out(states[-1])  # <- cause, right: return self.out(states[:, -1])


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(80):
    x = torch.randn(20, 20, 3)
    y = (x[:, -1, 0] > 0).long()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
