"""Gradients are accumulated over four micro-batches, and clipped after each: the sum of the earlier ones is clipped again and again.

expect: clipping-misplaced
source: [huggingface/transformers#1563](https://github.com/huggingface/transformers/issues/1563)
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for step in range(80):
    optimizer.zero_grad()
    for _ in range(4):
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(x[rows]), y[rows]) / 4
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # <- cause
    optimizer.step()
print("loss", round(4 * loss.item(), 3))
