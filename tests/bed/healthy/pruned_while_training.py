"""Half of the weights are pruned in the middle of the training: their gradient is exactly 0 from then on."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
for layer in (model[0], model[2]):
    prune.identity(layer, "weight")
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    if step == 50:
        for layer in (model[0], model[2]):
            prune.l1_unstructured(layer, "weight", amount=0.5)
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
