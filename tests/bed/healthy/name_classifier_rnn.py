"""The tutorial's character RNN: one name at a time, batch of one, SGD."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
ENDINGS = {0: "ski", 1: "son", 2: "ini"}


class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.i2h, self.h2o = nn.Linear(26 + 32, 32), nn.Linear(32, 3)

    def forward(self, letter, hidden):
        hidden = torch.tanh(self.i2h(torch.cat((letter, hidden), 1)))
        return self.h2o(hidden), hidden


rnn = RNN()
optimizer = torch.optim.SGD(rnn.parameters(), lr=0.05)
losses = []
for step in range(150):
    kind = step % 3
    letters = [chr(97 + i) for i in torch.randint(26, (int(torch.randint(2, 6, ())),)).tolist()] + list(ENDINGS[kind])
    hidden = torch.zeros(1, 32)
    for letter in letters:
        output, hidden = rnn(F.one_hot(torch.tensor([ord(letter) - 97]), 26).float(), hidden)
    loss = F.cross_entropy(output, torch.tensor([kind]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("loss", round(sum(losses[-30:]) / 30, 3))
