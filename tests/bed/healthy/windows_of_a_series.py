"""Forecasting the next value of a series from a window."""

import numpy as np
import torch
import torch.nn as nn

np.random.seed(0)
torch.manual_seed(0)
t = np.arange(1500)
series = np.sin(t / 9) + 0.5 * np.sin(t / 31) + 0.1 * np.random.randn(1500)
train = series[:1200]
series = (series - train.mean()) / train.std()
w = 24
X = torch.tensor(np.stack([series[i : i + w] for i in range(1200 - w)])).float()[..., None]
y = torch.tensor(series[w:1200]).float()[:, None]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 32, num_layers=2, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(32, 1)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        return self.fc(h[-1])


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
for epoch in range(5):
    model.train()
    for b in torch.randperm(len(X)).split(64):
        optimizer.zero_grad()
        loss = nn.functional.huber_loss(model(X[b]), y[b])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        sched.step(nn.functional.mse_loss(model(X), y))
print("loss", loss.item())
