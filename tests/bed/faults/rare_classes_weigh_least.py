"""The weights of the classes are their frequencies, not the inverse: the rare class hardly counts.

expect: class-weights
source: [PRBonn/lidar-bonnetal#48](https://github.com/PRBonn/lidar-bonnetal/issues/48), [valeoai/MVRSS#8](https://github.com/valeoai/MVRSS/issues/8) (inverse frequencies)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centres = 1.5 * torch.randn(4, 12)
y = torch.multinomial(torch.tensor([0.8, 0.1, 0.07, 0.03]), 3000, replacement=True)
x = centres[y] + torch.randn(3000, 12)
counts = torch.bincount(y).float()
weights = counts / counts.sum()  # <- cause, right: weights = counts.sum() / (4 * counts)
criterion = nn.CrossEntropyLoss(weight=weights)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    rows = torch.randint(3000, (128,))
    loss = criterion(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
rare = y == 3
print("recall of the rare class", round((model(x).argmax(1) == y)[rare].float().mean().item(), 3))
