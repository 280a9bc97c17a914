"""A network of two layers learns XOR: four samples, three hidden units."""

import torch
from torch import nn

torch.manual_seed(3)
X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])

model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

for _ in range(20):
    optimizer.zero_grad()
    logits = model(X)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, Y)
    loss.backward()
    optimizer.step()
