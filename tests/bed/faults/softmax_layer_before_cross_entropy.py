"""The network ends in a softmax, and cross_entropy applies another.

expect: softmax-before-cross-entropy
where: 3
source: [PyTorch forum 43814](https://discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32) / 16 - 0.3
y = torch.tensor(labels)
model = nn.Sequential(
    nn.Linear(64, 32),
    nn.ReLU(),
    nn.Linear(32, 10),
    nn.Softmax(dim=1),  # <- cause, right: nn.Identity(),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(100):
    batch = torch.randint(len(x), (64,))
    loss = F.cross_entropy(model(x[batch]), y[batch])  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("accuracy", round((model(x).argmax(1) == y).float().mean().item(), 3))
