"""The last state of a GRU over sentences that are padded at the end to the longest one there is.

expect: padding-read
where: gru
source: [bentrevett/pytorch-sentiment-analysis#86](https://github.com/bentrevett/pytorch-sentiment-analysis/issues/86)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Length(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, x):
        _, state = self.gru(self.embedding(x))  # <- cause
        return self.head(state[-1])


model = Length()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(10):
    lengths = torch.randint(4, 12, (16,))
    x = torch.randint(1, 30, (16, 60)) * (torch.arange(60) < lengths[:, None])
    loss = F.cross_entropy(model(x), (x[:, 0] > 15).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
