"""The encoder is frozen by `encoder.requires_grad = False`, which sets an attribute of the module: nothing is frozen.

expect: setting-without-effect
where: encoder, encoder.*
source: [CSCYQJ/MICCAI23-ProtoContra-SFDA#18](https://github.com/CSCYQJ/MICCAI23-ProtoContra-SFDA/issues/18), [udacity/deep-learning-v2-pytorch#12](https://github.com/udacity/deep-learning-v2-pytorch/issues/12)
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
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(x))


model = Classifier()
model.encoder.requires_grad = False  # <- cause, right: model.encoder.requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
