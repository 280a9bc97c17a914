"""A focal loss weighs the mean cross-entropy of a batch, not that of each sample.

expect: averaged-first
where: ce_loss
source: [kaidic/LDAM-DRW#6](https://github.com/kaidic/LDAM-DRW/issues/6), [jfzhang95/pytorch-deeplab-xception#133](https://github.com/jfzhang95/pytorch-deeplab-xception/issues/133)
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)

class FocalLoss(nn.Module):
    def __init__(self, alpha=1, gamma=2):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, inputs, targets):
        ce_loss = F.cross_entropy(inputs, targets)  # <- cause, right: ce_loss = F.cross_entropy(inputs, targets, reduction="none")
        pt = torch.exp(-ce_loss)
        return self.alpha * (1 - pt) ** self.gamma * ce_loss  # <- cause, right: return (self.alpha * (1 - pt) ** self.gamma * ce_loss).mean()

n = 2000
X = torch.randn(n, 12)
w = torch.randn(12, 5)
y = (X @ w + torch.tensor([3.0, 0, 0, 0, -2])).argmax(1)
model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 5))
criterion = FocalLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(100):
    i = torch.randint(n, (64,))
    optimizer.zero_grad()
    loss = criterion(model(X[i]), y[i])
    loss.backward()
    optimizer.step()
print(loss.item())
