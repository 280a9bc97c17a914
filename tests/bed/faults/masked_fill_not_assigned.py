"""The result of masked_fill is dropped, so the mask has no effect.

expect: mask-without-effect, padding-attended
source: [facebookresearch/ParlAI#3068](https://github.com/facebookresearch/ParlAI/pull/3068), [opendilab/DI-engine#333](https://github.com/opendilab/DI-engine/issues/333),
 [lucidrains/flamingo-pytorch#10](https://github.com/lucidrains/flamingo-pytorch/issues/10)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 32, padding_idx=0)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 2)

    def forward(self, tokens):
        h = self.embed(tokens)
        scores = self.q(h) @ self.k(h).transpose(1, 2) / 32**0.5
        scores.masked_fill((tokens == 0)[:, None], float("-inf"))  # <- cause, right: scores = scores.masked_fill((tokens == 0)[:, None], float("-inf"))
        weights = scores.softmax(-1)  # <- cause
        return self.out((weights @ self.v(h))[:, 0])


model = Attention()
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
