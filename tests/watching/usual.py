"""A usual training, which is watched."""

import torch
from torch import nn
from torch.nn import functional as F

from chainrule import runs

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.out = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.act(self.hidden(x)))


def built(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = Model()
    return model, kind(model.parameters(), **{"lr": 1e-2, **options})


def train(model, optimizer, steps, after=lambda: None):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after()
    return losses


def watched(path, kind="parameter gradient"):
    with runs.open(path) as run:
        return [facts.step for facts in run.steps()], {
            each.name: run.series(kind, each.name) for each in run.tensors(kind)
        }


def compiled_module(model):
    return torch.compile(model, backend="eager")


def compiled_method(model):
    model.compile(backend="eager")
    return model


def compiled_function(model):
    return torch.compile(lambda x: model(x), backend="eager")


COMPILED = (compiled_module, compiled_method, compiled_function)
