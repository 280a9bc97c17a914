"""Training on examples perturbed by the sign of the gradient (FGSM)."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    clean = x[rows].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(F.cross_entropy(model(clean), y[rows]), clean)
    harder = (clean + 0.1 * slope.sign()).detach()
    loss = F.cross_entropy(model(harder), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
