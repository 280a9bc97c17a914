"""A long short-term memory reads five numbers and predicts the next: backpropagation through time."""

import torch
from torch import nn


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(1, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, sequence):
        h = c = torch.zeros(sequence.shape[1], 2)
        for x in sequence:
            h, c = self.cell(x, (h, c))
        return self.head(h)


torch.manual_seed(0)
wave = torch.sin(torch.arange(8) * 0.7)
sequence = torch.stack([wave[0:5], wave[2:7]], dim=1).unsqueeze(-1)  # time, batch, feature
target = torch.stack([wave[5], wave[7]]).unsqueeze(-1)

model = Memory()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

for _ in range(20):
    optimizer.zero_grad()
    prediction = model(sequence)
    loss = nn.functional.mse_loss(prediction, target)
    loss.backward()
    optimizer.step()
