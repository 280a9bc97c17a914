"""A window of a series begins one step too late, so it ends with the value that is to be predicted.

expect: target-in-input
source: [sktime/pytorch-forecasting#182](https://github.com/sktime/pytorch-forecasting/issues/182), [alteryx/featuretools#2227](https://github.com/alteryx/featuretools/issues/2227)
"""

import numpy as np
import torch
import torch.nn as nn

np.random.seed(0); torch.manual_seed(0)
t = np.arange(1500)
series = np.sin(t / 9) + 0.5 * np.sin(t / 31) + 0.3 * np.random.randn(1500)
series = (series - series.mean()) / series.std()

def create_sequences(data, seq_length):
    xs, ys = [], []
    for i in range(len(data) - seq_length):
        xs.append(data[i + 1 : i + 1 + seq_length])  # <- cause, right: xs.append(data[i : i + seq_length])
        ys.append(data[i + seq_length])
    return np.array(xs), np.array(ys)

X, y = create_sequences(series, 24)
X = torch.from_numpy(X).float().unsqueeze(-1)
y = torch.from_numpy(y).float().unsqueeze(-1)

class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])

model = LSTM()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for epoch in range(4):
    perm = torch.randperm(len(X))
    for i in range(0, len(X) - 63, 64):
        b = perm[i : i + 64]
        optimizer.zero_grad()
        x, goal = X[b], y[b]
        loss = criterion(model(x), goal)  # <- cause
        loss.backward()
        optimizer.step()
print("mse", loss.item())
