"""A spiking network: spikes are 0 or 1, with a surrogate gradient of the step."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, potential):
        ctx.save_for_backward(potential)
        return (potential > 0).float()

    @staticmethod
    def backward(ctx, upstream):
        (potential,) = ctx.saved_tensors
        return upstream / (1 + 10 * potential.abs()) ** 2


class Spiking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        potential, votes = torch.zeros(len(x), 64), torch.zeros(len(x), 10)
        for _ in range(8):
            potential = 0.9 * potential + self.inner(torch.bernoulli(x))
            spikes = Spike.apply(potential - 1)
            potential = potential - spikes.detach()
            votes = votes + self.out(spikes)
        return votes / 8


model = Spiking()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(60):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
