"""A small convolutional network tells a vertical bar from a horizontal one."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(2 * 2 * 2, 2)

    def forward(self, image):
        features = torch.relu(self.conv(image))
        pooled = self.pool(features)
        return self.head(pooled.flatten(1))


torch.manual_seed(0)
images = torch.zeros(2, 1, 4, 4)
images[0, 0, :, 1] = 1  # vertical
images[1, 0, 2, :] = 1  # horizontal
labels = torch.tensor([0, 1])

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for _ in range(20):
    optimizer.zero_grad()
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
