"""Speech by CTC: the log_softmax runs along the time and not along the symbols.

expect: softmax-axis
effects: initial-loss
source: PyTorch's documentation of CTCLoss: log_probs of shape (T, N, C), as made by log_softmax(2)
"""

import torch
from torch import nn

torch.manual_seed(0)
sounds = torch.randn(6, 10)


def batch(count=16, length=4):
    symbols = torch.randint(1, 6, (count, length))
    frames = torch.stack([symbols, torch.zeros_like(symbols), symbols], 2).flatten(1)
    return sounds[frames] + 0.3 * torch.randn(count, 3 * length, 10), symbols


class Listener(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(10, 24, batch_first=True, bidirectional=True), nn.Linear(48, 6)

    def forward(self, x):
        scores = self.out(self.rnn(x)[0]).transpose(0, 1)
        return scores.log_softmax(0)  # <- cause, right: return scores.log_softmax(2)


model, criterion = Listener(), nn.CTCLoss(blank=0)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(60):
    x, symbols = batch()
    chances = model(x)
    loss = criterion(chances, symbols, torch.full((16,), len(chances)), torch.full((16,), 4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
