"""Skip-grams with negative sampling and sparse gradients."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V = 40
words = (torch.randint(0, 8, (4000,)).cumsum(0) // 8 * 5 + torch.randint(0, 5, (4000,))) % V


class SkipGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.centre, self.context = nn.Embedding(V, 16, sparse=True), nn.Embedding(V, 16, sparse=True)
        nn.init.uniform_(self.centre.weight, -0.5, 0.5)
        nn.init.uniform_(self.context.weight, -0.1, 0.1)

    def forward(self, centre, context, negative):
        c = self.centre(centre)
        good = (c * self.context(context)).sum(-1)
        bad = (c[:, None] * self.context(negative)).sum(-1)
        return -(F.logsigmoid(good) + F.logsigmoid(-bad).sum(1)).mean()


model = SkipGram()
optimizer = torch.optim.SparseAdam(model.parameters(), lr=1e-2)
for step in range(100):
    at = torch.randint(0, 3998, (128,))
    loss = model(words[at], words[at + 1], torch.randint(V, (128, 4)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
