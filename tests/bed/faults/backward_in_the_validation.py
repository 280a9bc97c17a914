"""The validation calls backward() too: its gradients are added to those of the next step.

expect: accumulated-gradient
source: [harvardnlp/annotated-transformer#14](https://github.com/harvardnlp/annotated-transformer/issues/14), [araffin/robotics-rl-srl#48](https://github.com/araffin/robotics-rl-srl/issues/48)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)


def run(rows):
    loss = F.cross_entropy(model(x[rows]), y[rows])
    loss.backward()
    return loss


for step in range(80):
    run(torch.randint(1280, (64,)))
    optimizer.step()
    optimizer.zero_grad()
    if step % 2:
        check = run(torch.arange(1280, 1780))  # <- cause, right: check = F.cross_entropy(model(x[1280:1780]), y[1280:1780])
print("loss", round(check.item(), 3))
