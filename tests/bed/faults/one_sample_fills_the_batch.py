"""The data set reads its file by another counter than the index, so that all samples of a batch are the same.

expect: samples-alike
effects: one-class
source: [NVIDIA-Genomics-Research/AtacWorks#207](https://github.com/NVIDIA-Genomics-Research/AtacWorks/issues/207)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)


class Digits(Dataset):
    def __init__(self):
        self.batch = -1

    def __len__(self):
        return len(x)

    def __getitem__(self, index):
        if index % 32 == 0:
            self.batch += 1
        row = 7 * self.batch % len(x)  # <- cause, right: row = index
        return x[row], y[row]


model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(2):
    for inputs, targets in DataLoader(Digits(), batch_size=32):
        loss = F.cross_entropy(model(inputs), targets)  # <- cause
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(F.cross_entropy(model(x), y).item(), 3))
