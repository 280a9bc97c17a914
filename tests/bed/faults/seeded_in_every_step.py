"""The seed is set inside of the training step "for reproducibility": each step has the same noise and the same dropout.

expect: same-noise
source: [Atcold/NYU-DLSP20#851](https://github.com/Atcold/NYU-DLSP20/issues/851), [pengzhiliang/MAE-pytorch#28](https://github.com/pengzhiliang/MAE-pytorch/issues/28)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def train_step(rows):
    torch.manual_seed(42)  # <- cause, right: pass
    noisy = x[rows] + 0.3 * torch.randn(len(rows), 64)
    loss = F.mse_loss(model(noisy), x[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


for epoch in range(4):
    for rows in torch.arange(len(x)).split(64):
        loss = train_step(rows)
print("loss", round(loss.item(), 3))
