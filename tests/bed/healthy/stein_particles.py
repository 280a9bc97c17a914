"""Stein variational gradient descent: particles whose gradient is set by hand."""

import math

import torch

torch.manual_seed(0)
X = torch.randn(100, 2)
w_true = torch.tensor([1.5, -2.0])
y = (torch.rand(100) < torch.sigmoid(X @ w_true)).float()


def log_prob(w):
    z = X @ w.T
    return (
        -torch.nn.functional.softplus(-z).mul(y[:, None]).sum(0)
        - torch.nn.functional.softplus(z).mul(1 - y[:, None]).sum(0)
        - 0.5 * (w**2).sum(1) / 10
    )


w = torch.randn(30, 2)
opt = torch.optim.Adagrad([w], lr=0.3)
for it in range(40):
    wi = w.detach().requires_grad_(True)
    score = torch.autograd.grad(log_prob(wi).sum(), wi)[0]
    d2 = torch.cdist(wi, wi.detach()) ** 2
    h = d2.detach().median() / math.log(31)
    K = torch.exp(-d2 / h)
    gk = -torch.autograd.grad(K.sum(), wi)[0]
    phi = (K.detach() @ score + gk) / 30
    w.grad = -phi
    opt.step()
print(w.mean(0).tolist())
