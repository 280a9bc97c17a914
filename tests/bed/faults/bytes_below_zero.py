"""128 is subtracted from pictures of bytes, which have no number below 0.

expect: bytes-wrap
where: image
source: [waveform80/picamera#263](https://github.com/waveform80/picamera/pull/263), [LCAV/LenslessPiCam#173](https://github.com/LCAV/LenslessPiCam/pull/173)
"""

import numpy as np
import torch
import torch.nn as nn
from sklearn.datasets import load_digits

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images * 15.9).to(torch.uint8)[:, None]   # as read from PNG files
labels = torch.tensor(digits.target)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=64, shuffle=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))

    def forward(self, image):
        image = (image - 128).float() / 128  # <- cause, right: image = (image.float() - 128) / 128
        return self.layers(image)


net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
for epoch in range(3):
    for image, label in loader:
        loss = nn.functional.cross_entropy(net(image), label)
        opt.zero_grad()
        loss.backward()
        opt.step()
print(loss.item())
