"""The hidden state is never detached, and retain_graph=True hides it: each step goes back to the first.

expect: kept-graph
where: rnn, state, hidden
source: [MorvanZhou/PyTorch-Tutorial#57](https://github.com/MorvanZhou/PyTorch-Tutorial/issues/57), [quark0/darts#56](https://github.com/quark0/darts/issues/56)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 1)

    def forward(self, x, state):
        state = torch.tanh(x @ W + state * 0.5)
        return self.out(state), state


W = torch.randn(3, 12, requires_grad=True)
model = Memory()
optimizer = torch.optim.SGD([W, *model.parameters()], lr=0.01)
state = torch.zeros(16, 12)
for step in range(60):
    x = torch.randn(16, 3)
    output, state = model(x, state)  # <- cause, right: output, state = model(x, state.detach())
    loss = F.mse_loss(output, x[:, :1])
    optimizer.zero_grad()
    loss.backward(retain_graph=True)  # <- cause
    optimizer.step()
print("loss", round(loss.item(), 3))
