"""The evaluation puts the averaged weights into the model; the "backup" is a state dict that shares its tensors, so they are never put back.

expect: weights-replaced
where: weights
source: [aqlaboratory/openfold#90](https://github.com/aqlaboratory/openfold/pull/90)
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
average = {name: value.clone() for name, value in model.state_dict().items()}
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(4):
    for rows in torch.randperm(len(x)).split(90):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 0.01)
    backup = model.state_dict()  # <- cause, right: backup = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average)
    with torch.no_grad():
        print("accuracy", (model(x).argmax(1) == y).float().mean().item())
    model.load_state_dict(backup)
print("loss", round(loss.item(), 3))
