"""The loss is divided by the number of pixels twice, so all gradients lie far below Adam's eps.

expect: optimizer-option
where: Adam
source: Kingma and Ba, Adam, 2015
TensorFlow's documentation of Adam on its epsilon
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, padding=1)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.up(F.relu(self.mid(F.relu(self.down(x)))))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(25):
    image = torch.randn(8, 1, 32, 32)
    mask = (F.avg_pool2d(image, 3, 1, 1) > 0.1).float()
    loss = F.binary_cross_entropy_with_logits(net(image), mask)
    loss = loss / (image.numel() ** 2)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
