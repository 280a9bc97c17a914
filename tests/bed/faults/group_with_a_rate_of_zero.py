"""A parameter group gets lr=0 from an unset option.

expect: stuck-update
where: body, 0.weight, 0.bias, body.*
source: Humbatova et al., 2020 (wrong hyperparameter); [yeyupiaoling/AudioClassification-Pytorch#2](https://github.com/yeyupiaoling/AudioClassification-Pytorch/issues/2)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.ModuleDict({"body": nn.Linear(8, 16), "head": nn.Linear(16, 1)})
options = {"head_rate": 0.01}
groups = [
    {"params": model["body"].parameters(), "lr": options.get("body_rate", 0.0)},  # <- cause, right: {"params": model["body"].parameters(), "lr": options.get("body_rate", 0.01)},
    {"params": model["head"].parameters(), "lr": options.get("head_rate", 0.0)},
]
optimizer = torch.optim.Adam(groups)
for step in range(120):
    x = torch.randn(64, 8)
    loss = F.mse_loss(model["head"](torch.tanh(model["body"](x))), x[:, :1] * x[:, 1:2] + x[:, 2:3])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- cause
print("loss", round(loss.item(), 3))
