"""The weights of two losses are parameters, and nothing keeps them from falling.

expect: loss-weight-unheld
source: [aharley/simple_bev#13](https://github.com/aharley/simple_bev/issues/13), [QunBB/DeepLearning#1](https://github.com/QunBB/DeepLearning/issues/1); Kendall, Gal and Cipolla, 2018
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
d = load_digits()
X = torch.tensor(d.data, dtype=torch.float32) / 16
Y = torch.tensor(d.target)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.digit = nn.Linear(64, 10)
        self.ink = nn.Linear(64, 1)
        self.weights = nn.Parameter(torch.ones(2))
    def forward(self, x):
        h = self.body(x)
        return self.digit(h), self.ink(h).squeeze(1)
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=5e-3)
for step in range(80):
    i = torch.randint(len(X), (64,))
    logits, ink = net(X[i])
    ce = F.cross_entropy(logits, Y[i])
    mse = F.mse_loss(ink, X[i].mean(1))
    loss = net.weights[0] * ce + net.weights[1] * mse  # <- cause, right: loss = ce + mse
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item(), net.weights.tolist())
