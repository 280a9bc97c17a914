"""CosineEmbeddingLoss expects 1 and -1 and gets 1 and 0: pairs that differ have loss 0 and no gradient.

expect: targets-out-of-range
where: same
source: [ooples/AiDotNet.Tensors#271](https://github.com/ooples/AiDotNet.Tensors/pull/271); PyTorch's documentation of CosineEmbeddingLoss: the target is 1 or -1
"""

import torch
from torch import nn

torch.manual_seed(0)
tower = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
criterion = nn.CosineEmbeddingLoss()
optimizer = torch.optim.Adam(tower.parameters(), lr=3e-3)
centres = torch.randn(6, 12)
for step in range(60):
    a, b = torch.randint(6, (64,)), torch.randint(6, (64,))
    b = torch.where(torch.rand(64) < 0.5, a, b)
    same = (a == b).long()  # <- cause, right: same = 2 * (a == b).long() - 1
    left = tower(centres[a] + 0.2 * torch.randn(64, 12))
    right = tower(centres[b] + 0.2 * torch.randn(64, 12))
    loss = criterion(left, right, same)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
