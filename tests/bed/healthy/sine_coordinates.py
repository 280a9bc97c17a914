"""A network of sines (SIREN) fits one picture by its coordinates: all of it in every step."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

torch.manual_seed(0)
picture = torch.tensor(load_sample_image("flower.jpg")).float().mean(2)[40:360:10, 100:420:10] / 127.5 - 1
rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
where = torch.stack([rows, columns], 2).reshape(-1, 2)


class Sine(nn.Module):
    def __init__(self, inputs, outputs, bound):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(30 * self.linear(x))


inner = (6 / 64) ** 0.5 / 30
model = nn.Sequential(Sine(2, 64, 0.5), Sine(64, 64, inner), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(100):
    loss = F.mse_loss(model(where)[:, 0], picture.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
