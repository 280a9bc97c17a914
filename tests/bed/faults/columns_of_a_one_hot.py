"""`target[:, labels] = 1` sets the columns of all labels in every row.

expect: labels-of-all
where: target
source: PyTorch's documentation of torch.Tensor.scatter_ (one-hot rows); NumPy's of advanced indexing
"""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

torch.manual_seed(0)
X = torch.tensor(load_digits().data, dtype=torch.float32) / 16
Y = torch.tensor(load_digits().target)
model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
criterion = nn.BCEWithLogitsLoss()
opt = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    b = torch.randint(len(X), (8,))
    output = model(X[b])
    target = torch.zeros(8, 10)
    target[:, Y[b]] = 1  # <- cause, right: target[torch.arange(8), Y[b]] = 1
    loss = criterion(output, target)
    opt.zero_grad()
    loss.backward()
    opt.step()
print((model(X).argmax(1) == Y).float().mean().item())
