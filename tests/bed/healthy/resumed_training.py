"""Training that is stopped and resumed with model, optimizer and scheduler."""

import io

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
y = torch.tensor(load_digits().target)


def build():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    return net, opt, torch.optim.lr_scheduler.StepLR(opt, 2, 0.3)


def train(net, opt, sched, epochs):
    for _ in range(epochs):
        for b in torch.randperm(len(x)).split(128):
            opt.zero_grad()
            loss = F.cross_entropy(net(x[b]), y[b])
            loss.backward()
            opt.step()
        sched.step()
    return loss.item()


parts = build()
train(*parts, 3)
file = io.BytesIO()
torch.save({k: v.state_dict() for k, v in zip(("net", "opt", "sched"), parts)}, file)
file.seek(0)
saved = torch.load(file)
parts = build()
for k, v in zip(("net", "opt", "sched"), parts):
    v.load_state_dict(saved[k])
print("loss", train(*parts, 3))
