"""Eight frames are flattened to the features of one step, so a GRU has nothing to remember.

expect: one-step-sequence
where: gru
source: PyTorch's documentation of torch.nn.GRU: the input is (batch, sequence, features) with batch_first
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Gesture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8 * 3, 32, batch_first=True)
        self.classes = nn.Linear(32, 2)

    def forward(self, frames):
        out, _ = self.gru(frames.flatten(1)[:, None])  # <- cause
        return self.classes(out[:, -1])


model = Gesture()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(60):
    y = torch.randint(2, (32,))
    way = torch.cumsum(torch.randn(32, 8, 3) * 0.3 + (2 * y - 1)[:, None, None] * 0.2, 1)
    loss = F.cross_entropy(model(way), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
