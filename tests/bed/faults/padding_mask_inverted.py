"""The padding mask is True where a token is: the words are hidden and the padding is seen.

expect: padding-attended
where: attention
source: [pytorch/pytorch#27968](https://github.com/pytorch/pytorch/issues/27968), [lucidrains/halonet-pytorch#4](https://github.com/lucidrains/halonet-pytorch/issues/4)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, tokens):
        h = self.embed(tokens)
        mask = tokens != 0  # <- cause, right: mask = tokens == 0
        h, _ = self.attention(h, h, h, key_padding_mask=mask)  # <- cause
        return self.out(h.mean(1))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    lengths = torch.randint(2, 8, (64,))
    tokens = torch.randint(1, 10, (64, 8)) * (torch.arange(8) < lengths[:, None])
    loss = F.cross_entropy(model(tokens), (tokens == 4).any(1).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
