"""A triplet margin loss with normalised embeddings; many triplets soon have a loss of 0."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
groups = [torch.nonzero(y == digit)[:, 0] for digit in range(10)]
net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
criterion = nn.TripletMarginLoss(margin=0.5)
for step in range(100):
    digits = torch.randint(10, (48,)).tolist()
    pairs = torch.stack([groups[d][torch.randint(len(groups[d]), (2,))] for d in digits])
    others = torch.stack([groups[(d + 1 + torch.randint(9, (1,)).item()) % 10][torch.randint(150, ())] for d in digits])
    anchor, positive, negative = (F.normalize(net(x[i]), dim=1) for i in (pairs[:, 0], pairs[:, 1], others))
    loss = criterion(anchor, positive, negative)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
