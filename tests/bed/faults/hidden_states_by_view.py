"""`h_n.view(batch, -1)` of a two-way LSTM, whose first axis is the directions: it mixes the samples.

expect: samples-mix
source: [timbmg/Sentence-VAE#15](https://github.com/timbmg/Sentence-VAE/issues/15), [zy1996code/nlp_basic_model#1](https://github.com/zy1996code/nlp_basic_model/issues/1)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 2)

    def forward(self, x):
        _, (last, _) = self.lstm(x)
        last = last.view(len(x), -1)  # <- cause, right: last = last.transpose(0, 1).reshape(len(x), -1)
        return self.out(last)


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(80):
    x = torch.randn(32, 10, 3)
    y = (x[:, :, 0].sum(1) > 0).long()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
