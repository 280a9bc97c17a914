"""The last layer begins so large that the first loss is far above ln 10.

expect: initial-loss
effects: input-not-normalised, saturated
source: Karpathy, A recipe for training neural networks, 2019 ("verify loss @ init")
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
nn.init.normal_(model[2].weight, std=20.0)  # <- cause, right: nn.init.normal_(model[2].weight, std=0.05)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(100):
    batch = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[batch]), y[batch])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(F.cross_entropy(model(x), y).item(), 3))
