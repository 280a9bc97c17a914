"""An MLP on digits with SGD and momentum, as in the quickstart tutorial."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
x = (x - x.mean()) / x.std()
data = TensorDataset(x, torch.tensor(labels))
train, test = torch.utils.data.random_split(data, [1500, 297])
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for epoch in range(5):
    model.train()
    for batch, wanted in DataLoader(train, batch_size=64, shuffle=True):
        loss = F.cross_entropy(model(batch), wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        hits = sum((model(a).argmax(1) == b).sum().item() for a, b in DataLoader(test, batch_size=100))
print("accuracy", round(hits / 297, 3))
