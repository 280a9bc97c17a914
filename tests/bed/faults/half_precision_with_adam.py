"""model.half() with Adam: eps=1e-8 and the squared gradients are 0 in half precision, so the first update is not finite.

expect: non-finite-backward
where: *.weight, *.bias
effects: non-finite-forward
source: [afiaka87/glide-finetune#5](https://github.com/afiaka87/glide-finetune/issues/5), [matanbt/TROPT#8](https://github.com/matanbt/TROPT/pull/8)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).half()  # <- cause, right: model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
centres = torch.randn(4, 16)
for step in range(40):
    y = torch.randint(4, (32,))
    x = (centres[y] + 0.5 * torch.randn(32, 16)).to(model[0].weight.dtype)
    loss = F.cross_entropy(model(x).float(), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", loss.item())
