"""Fine-tuning, but the backbone still runs under no_grad.

expect: no-gradient
where: backbone.*
source: [lucidrains/CoCa-pytorch#6](https://github.com/lucidrains/CoCa-pytorch/issues/6) (no gradient reaches the encoder)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 0.6
y = torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        with torch.no_grad():  # <- cause, right: if True:
            h = self.backbone(x)  # <- cause
        return self.head(h)


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(120):
    batch = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
