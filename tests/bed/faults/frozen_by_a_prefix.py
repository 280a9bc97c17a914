"""Freezing the first field, all names that begin with `layer1`, freezes layer10, 11 and 12 too.

expect: frozen-by-name, no-gradient
where: layer10.*, layer11.*, layer12.*
source: Humbatova et al., Taxonomy of real faults in deep learning systems, 2020 (layers frozen by mistake)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
w = torch.randn(12, 4)


class Fields(nn.Module):
    def __init__(self):
        super().__init__()
        for number in range(1, 13):
            setattr(self, f"layer{number}", nn.Linear(4, 1))
        self.out = nn.Linear(12, 1)

    def forward(self, fields):
        read = [getattr(self, f"layer{number}")(fields[:, number - 1]) for number in range(1, 13)]
        return self.out(torch.cat(read, dim=1))


model = Fields()
model.layer1.load_state_dict({"weight": w[:1], "bias": torch.zeros(1)})
for name, parameter in model.named_parameters():
    if name.startswith("layer1"):  # <- cause, right: if name.startswith("layer1."):
        parameter.requires_grad = False  # <- cause
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
for step in range(120):
    fields = torch.randn(64, 12, 4)
    loss = F.mse_loss(model(fields), (fields * w).sum((1, 2))[:, None] / 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
