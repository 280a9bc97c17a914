"""After a "restart" the rate is set to 1.0 (a factor taken for a rate), in Adam.

expect: learning-rate-jump
where: optimizer, learning rate, group *, loss
effects: loss-spike, update-too-large, learning-rate-too-high, saturated
source: Humbatova et al., 2020 (wrong learning rate schedule); [LambdaLR](https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html)
 returns a factor
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def rate(step):
    if step < 70:
        return 2e-3 * (1 - step / 100)
    return 1.0 - (step - 70) / 100  # <- cause, right: return 2e-3 * (1.0 - (step - 70) / 100)


for step in range(100):
    for group in optimizer.param_groups:
        group["lr"] = rate(step)  # <- cause
    batch = x[torch.randint(len(x), (64,))]
    loss = F.mse_loss(model(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
