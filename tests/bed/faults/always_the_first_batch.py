"""`next(iter(loader))` inside the loop, without shuffling: always the first batch.

expect: same-batch
where: x*, batch*, y*, input*, loss
source: [ZhaoJ9014/face.evoLVe#39](https://github.com/ZhaoJ9014/face.evoLVe/pull/39), [Trusted-AI/adversarial-robustness-toolbox#728](https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/728)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pictures, dtype=torch.float32) / 8 - 0.6, torch.tensor(labels)
loader = DataLoader(TensorDataset(x, y), batch_size=32)
endless = iter(DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    batch, wanted = next(iter(loader))  # <- cause, right: batch, wanted = next(endless)
    loss = F.cross_entropy(model(batch), wanted)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
