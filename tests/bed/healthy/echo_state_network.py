"""An echo state network: a random recurrence that is never trained, and a readout that is."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class EchoState(nn.Module):
    def __init__(self, size=100):
        super().__init__()
        matrix = torch.randn(size, size)
        self.register_buffer("recurrence", 0.9 * matrix / torch.linalg.eigvals(matrix).abs().max())
        self.register_buffer("input", torch.rand(size) - 0.5)
        self.readout = nn.Linear(size, 1)

    def forward(self, signal):
        state = torch.zeros(len(signal), len(self.recurrence))
        for now in signal.T:
            state = torch.tanh(state @ self.recurrence.T + now[:, None] * self.input)
        return self.readout(state)[:, 0]


model = EchoState()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(80):
    start = torch.rand(64, 1) * 6
    wave = torch.sin(start + 0.5 * torch.arange(21))
    loss = F.mse_loss(model(wave[:, :-1]), wave[:, -1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
