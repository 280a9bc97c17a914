"""F.dropout without `training=`: it stays on in eval mode.

expect: dropout-in-eval
source: [BogiHsu/Tacotron2-PyTorch#8](https://github.com/BogiHsu/Tacotron2-PyTorch/issues/8); Humbatova et al., 2020
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x):
        h = F.dropout(F.relu(self.fc1(x)), 0.6)  # <- cause, right: h = F.dropout(F.relu(self.fc1(x)), 0.6, self.training)
        return self.fc2(h)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    model.train()
    rows = torch.randint(1500, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
print("accuracy", round(accuracy, 3))
