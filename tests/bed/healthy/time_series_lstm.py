"""An LSTM forecasts the next value of a noisy wave."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


model = Forecast()
optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
for step in range(100):
    phase = 2 * math.pi * torch.rand(32, 1)
    wave = torch.sin(phase + 0.5 * torch.arange(13)) + 0.05 * torch.randn(32, 13)
    loss = F.mse_loss(model(wave[:, :12, None]), wave[:, 12:])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
print("loss", round(loss.item(), 3))
