"""A perceptron, online: one sample a step, and no update where the sample is on the right side."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
w = torch.randn(5)
for step in range(150):
    x = torch.randn(5)
    y = torch.sign(x @ w)
    loss = torch.relu(-y * model(x)[0])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x = torch.randn(1000, 5)
print("accuracy", round((torch.sign(model(x)[:, 0]) == torch.sign(x @ w)).float().mean().item(), 3))
