"""The hidden state of the last batch is not detached: the second backward fails.

expect: backward-failed
where: rnn, state
source: [MorvanZhou/PyTorch-Tutorial#57](https://github.com/MorvanZhou/PyTorch-Tutorial/issues/57)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x, state):
        h, state = self.rnn(x, state)  # <- cause
        return self.out(h), state


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
state = None
for step in range(60):
    x = torch.randn(16, 6, 2)
    output, state = model(x, state)  # <- cause, right: output, state = model(x, None if state is None else state.detach())
    loss = F.mse_loss(output[..., 0], x[..., 0].cumsum(1))
    optimizer.zero_grad()
    loss.backward()  # <- cause
    optimizer.step()
print("loss", round(loss.item(), 3))
