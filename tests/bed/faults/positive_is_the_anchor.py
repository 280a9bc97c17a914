"""The positive of a triplet is drawn by the label from a list that has the anchor alone: it is the anchor itself.

expect: compared-with-itself
where: linear@4
source: Schroff, Kalenichenko and Philbin, FaceNet, 2015, 3.2: the choice of triplets
"""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
loss_fn = nn.TripletMarginLoss(margin=0.5)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
X = torch.randn(200, 16)
Y = torch.randint(0, 10, (200,))
for step in range(20):
    i = torch.randint(0, 200, (32,))
    p = i.clone()  # <- cause
    n = torch.stack([torch.randint(0, 200, ()) for _ in i])
    anchor, positive, negative = net(X[i]), net(X[p]), net(X[n])
    loss = loss_fn(anchor, positive, negative)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
