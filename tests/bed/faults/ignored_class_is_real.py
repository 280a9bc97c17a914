"""ignore_index=0 in a tagger whose class 0 is a real class: nothing of it is learnt.

expect: unfittable-labels
source: [nyu-mll/jiant#925](https://github.com/nyu-mll/jiant/issues/925)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
criterion = nn.CrossEntropyLoss(ignore_index=0)  # <- cause, right: criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    rows = torch.randint(len(x), (64,))
    loss = criterion(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
guess = model(x).argmax(1)
print("accuracy of zeros", round((guess[y == 0] == 0).float().mean().item(), 3))
