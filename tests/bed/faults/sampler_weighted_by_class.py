"""A WeightedRandomSampler gets one weight per class, not per sample: it draws the first ten samples alone.

expect: few-samples
where: inputs
source: [deep-voice/soundbay#49](https://github.com/deep-voice/soundbay/pull/49)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16
y = torch.tensor(labels)
weights = 1 / torch.bincount(y).float()
sampler = torch.utils.data.WeightedRandomSampler(weights, len(x))  # <- cause, right: sampler = torch.utils.data.WeightedRandomSampler(weights[y], len(x))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, sampler=sampler)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(3):
    for inputs, targets in loader:
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print("loss", round(loss.item(), 3))
