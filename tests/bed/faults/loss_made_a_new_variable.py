"""The loss is wrapped in a new Variable "to make it require a gradient": backward ends there.

expect: nothing-to-step, no-gradient
where: Adam*
source: [huggingface/torchMoji#21](https://github.com/huggingface/torchMoji/issues/21), [speechbrain/speechbrain#735](https://github.com/speechbrain/speechbrain/issues/735)
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Variable

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
shapes = torch.randn(3, 1, 8, 8)
for step in range(60):
    y = torch.randint(3, (16,))
    x = shapes[y] + 0.3 * torch.randn(16, 1, 8, 8)
    loss = F.cross_entropy(net(x), y)
    loss = Variable(loss.data, requires_grad=True)  # <- cause, right: loss = 1.0 * loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
