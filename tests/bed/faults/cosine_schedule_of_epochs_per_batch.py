"""CosineAnnealingLR with T_max in epochs is stepped after each batch: the rate swings up and down within an epoch.

expect: scheduler-per-batch
where: learning rate
source: [ivadomed/ivadomed#57](https://github.com/ivadomed/ivadomed/issues/57), [sthalles/SimCLR#8](https://github.com/sthalles/SimCLR/issues/8)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pictures, dtype=torch.float32) / 16, torch.tensor(labels))
loader = DataLoader(data, batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
for epoch in range(4):
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()  # <- cause, right: scheduler.get_last_lr()
print("loss", round(loss.item(), 3))
