"""Bilevel learning: weights of noisy samples are learnt by the gradient through one step of the model."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
x = torch.randn(120, 6)
w = torch.randn(6)
y = (x @ w > 0).float()
clean_x = torch.randn(60, 6)
clean_y = (clean_x @ w > 0).float()
y[:40] = 1 - y[:40]
model = nn.Linear(6, 1)
scores = nn.Parameter(torch.zeros(120))
inner = torch.optim.SGD(model.parameters(), lr=0.5)
outer = torch.optim.Adam([scores], lr=0.1)
for step in range(60):
    parameters = dict(model.named_parameters())
    each = F.binary_cross_entropy_with_logits(model(x)[:, 0], y, reduction="none")
    loss = (torch.sigmoid(scores) * each).mean()
    grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    moved = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), grads)}
    held_out = F.binary_cross_entropy_with_logits(functional_call(model, moved, (clean_x,))[:, 0], clean_y)
    outer.zero_grad()
    held_out.backward(inputs=[scores])
    outer.step()
    inner.zero_grad()
    each = F.binary_cross_entropy_with_logits(model(x)[:, 0], y, reduction="none")
    (torch.sigmoid(scores).detach() * each).mean().backward()
    inner.step()
print("accuracy", round(((model(clean_x)[:, 0] > 0) == (clean_y > 0)).float().mean().item(), 3))
