"""After the first validation the model stays in eval mode, so dropout and batch norm are off.

expect: eval-while-training
where: model, norm, drop, *norm*, *drop*, 1, 3
source: [ermongroup/ncsn#2](https://github.com/ermongroup/ncsn/issues/2), [wkentaro/pytorch-fcn#57](https://github.com/wkentaro/pytorch-fcn/issues/57),
 [fartashf/vsepp#4](https://github.com/fartashf/vsepp/issues/4)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(1500, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        model.eval()  # <- cause
        with torch.no_grad():
            accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()  # <- cause, right: accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item(); model.train()
print("accuracy", round(accuracy, 3))
