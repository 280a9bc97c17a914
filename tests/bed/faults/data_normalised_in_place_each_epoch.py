"""The data set normalises its pictures in place: they are divided again at every epoch.

expect: input-not-normalised
where: inputs
source: [pytorch/vision#680](https://github.com/pytorch/vision/issues/680), [facebookresearch/pycls#21](https://github.com/facebookresearch/pycls/pull/21)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
class Digits(torch.utils.data.Dataset):
    def __len__(self):
        return len(x)

    def __getitem__(self, index):
        picture = x[index]
        return picture.sub_(0.5).div_(0.5), y[index]  # <- cause, right: return (picture - 0.5) / 0.5, y[index]


loader = torch.utils.data.DataLoader(Digits(), batch_size=120, shuffle=True)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(6):
    for inputs, targets in loader:
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
