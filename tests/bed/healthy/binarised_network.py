"""A network with binary weights and activations, trained with straight-through estimators."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * (x.abs() <= 1)


class BinaryLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, Sign.apply(self.weight), self.bias)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm1 = BinaryLinear(64, 128), nn.BatchNorm1d(128)
        self.fc2, self.norm2 = BinaryLinear(128, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        return self.norm2(self.fc2(Sign.apply(self.norm1(self.fc1(x)))))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(120):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
