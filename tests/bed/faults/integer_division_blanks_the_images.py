"""uint8 // 255 is 0: every picture is black.

expect: zero-batch
where: x*, batch*, images*, getitem*, input*, loss
source: Humbatova et al., 2020 (wrong type of data); Islam et al., 2019 (data bugs)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
raw = torch.tensor(pictures * 15).to(torch.uint8)
images = (raw // 255).float()  # <- cause, right: images = raw.float() / 255
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(len(y), (64,))
    loss = F.cross_entropy(model(images[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(images).argmax(1) == y).float().mean().item(), 3))
