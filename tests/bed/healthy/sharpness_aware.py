"""Sharpness-aware minimisation: two backward passes, a climb and a step."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kw):
        super().__init__(params, dict(rho=rho, **kw))
        self.base = base(self.param_groups, **kw)

    @torch.no_grad()
    def first_step(self):
        norm = torch.norm(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]))
        for g in self.param_groups:
            for p in g["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad * g["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for g in self.param_groups:
            for p in g["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError


net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))
opt = SAM(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
c = torch.randn(4, 10)
for step in range(50):
    y = torch.randint(4, (32,))
    x = c[y] + 0.6 * torch.randn(32, 10)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.first_step()
    F.cross_entropy(net(x), y).backward()
    opt.second_step()
print(loss.item())
