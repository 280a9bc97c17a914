"""nll_loss gets the logits themselves, so the loss falls without bound.

expect: nll-without-log
effects: update-too-large, loss-spike, learning-rate-too-high
source: [yanx27/Pointnet_Pointnet2_pytorch#30](https://github.com/yanx27/Pointnet_Pointnet2_pytorch/issues/30)
"""

import torch
from torch import nn

torch.manual_seed(0)
centres = torch.randn(4, 10)
model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
hits = []
for step in range(100):
    y = torch.randint(4, (64,))
    x = centres[y] + torch.randn(64, 10)
    scores = model(x)  # <- cause, right: scores = torch.log_softmax(model(x), 1)
    loss = criterion(scores, y)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    hits.append((scores.argmax(1) == y).float().mean().item())
print("accuracy", round(sum(hits[-20:]) / 20, 3), "loss", round(loss.item(), 2))
