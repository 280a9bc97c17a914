"""Attention without a mask for the padding, which is most of a short sentence.

expect: padding-attended
where: attention
source: [pytorch/pytorch#27968](https://github.com/pytorch/pytorch/issues/27968); Vaswani et al., 2017
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 32, padding_idx=0)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, tokens):
        h = self.embed(tokens)
        h, _ = self.attention(h, h, h)  # <- cause, right: h, _ = self.attention(h, h, h, key_padding_mask=tokens == 0)
        return self.out(h[:, 0])


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    lengths = torch.randint(1, 9, (64,))
    tokens = torch.randint(1, 12, (64, 12)) * (torch.arange(12) < lengths[:, None])
    wanted = (tokens == 5).any(1).long()
    loss = F.cross_entropy(model(tokens), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
longer = F.pad(tokens, (0, 60))
print("loss with more padding", round(F.cross_entropy(model(longer), wanted).item(), 3))
