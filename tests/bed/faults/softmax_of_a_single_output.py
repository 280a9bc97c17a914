"""A binary classifier ends in a softmax over its one output, which is 1 for every input.

expect: softmax-of-one, zero-gradient
where: 3, A2
source: [marian-nmt/marian-dev#21](https://github.com/marian-nmt/marian-dev/issues/21); Zhang et al., AUTOTRAINER, 2021
"""

import torch
from sklearn.datasets import make_moons
from torch import nn

torch.manual_seed(0)
points, sides = make_moons(800, noise=0.1, random_state=0)
x = torch.tensor(points, dtype=torch.float32)
y = torch.tensor(sides, dtype=torch.float32)[:, None]
model = nn.Sequential(
    nn.Linear(2, 16),
    nn.ReLU(),
    nn.Linear(16, 1),
    nn.Softmax(dim=1),  # <- cause, right: nn.Sigmoid(),
)
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    batch = torch.randint(len(x), (64,))
    loss = criterion(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round(((model(x) > 0.5) == y.bool()).float().mean().item(), 3))
