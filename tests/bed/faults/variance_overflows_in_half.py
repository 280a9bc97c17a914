"""Activations squared in float16 overflow, and the norm after them makes NaN of the infinity.

expect: non-finite-forward
effects: input-not-normalised
source: [huggingface/transformers#5651](https://github.com/huggingface/transformers/issues/5651), [#4586](https://github.com/huggingface/transformers/issues/4586)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x):
        h = self.fc1(x).half()
        h = h * h  # <- cause, right: h = h.float() * h.float()
        return self.fc2(F.layer_norm(h.float(), (16,)))


model = FeedForward()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(80):
    x = torch.randn(32, 8)
    y = x[:, :1] ** 2
    if step == 50:
        x[3] *= 900
    loss = F.smooth_l1_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
