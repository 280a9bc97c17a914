"""Truncated backpropagation through time: the state is detached between windows."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
stream = (torch.arange(2000) * 3 % 10 + torch.arange(2000) % 2) % 10
stream = stream[: 2000 // 16 * 16].reshape(16, -1)


class CharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(10, 16), nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, tokens, state=None):
        h, state = self.rnn(self.embed(tokens), state)
        return self.out(h), state


model = CharRNN()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for epoch in range(9):
    state = None
    for begin in range(0, stream.shape[1] - 11, 10):
        if state is not None:
            state = tuple(each.detach() for each in state)
        logits, state = model(stream[:, begin : begin + 10], state)
        loss = F.cross_entropy(logits.flatten(0, 1), stream[:, begin + 1 : begin + 11].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
print("loss", round(loss.item(), 3))
