"""A mean is divided by the size of the batch once more.

expect: divided-twice
where: loss@1
source: [williamleif/GraphSAGE#12](https://github.com/williamleif/GraphSAGE/issues/12), [felipecode/coiltraine#37](https://github.com/felipecode/coiltraine/issues/37)
"""

import torch
import torch.nn as nn
from sklearn.datasets import load_diabetes

torch.manual_seed(0)
data = load_diabetes()
X = torch.tensor(data.data, dtype=torch.float32) * 21
y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)[:, None]
batch_size = 64
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=batch_size, shuffle=True, drop_last=True)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(14):
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss = loss / xb.size(0)  # <- cause, right: pass
        loss.backward()
        optimizer.step()
print("epoch loss", loss.item() * batch_size)
