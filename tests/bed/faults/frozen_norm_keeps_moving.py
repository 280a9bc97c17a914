"""The backbone is frozen, but model.train() lets its batch norms follow the new data: the features change all the same.

expect: frozen-norm-moves
where: backbone, backbone.*
source: [kdexd/virtex#16](https://github.com/kdexd/virtex/issues/16), [pgniewko/gt-pyg#112](https://github.com/pgniewko/gt-pyg/issues/112)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


model = Classifier()
for _ in range(200):
    model.backbone(x[torch.randint(len(x), (64,))])
for parameter in model.backbone.parameters():
    parameter.requires_grad = False
optimizer = torch.optim.Adam(model.head.parameters(), lr=3e-3)
darker = 0.4 * x
for epoch in range(3):
    model.train()  # <- cause, right: model.eval()
    for rows in torch.randperm(len(x)).split(64):
        loss = F.cross_entropy(model(darker[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
