"""An exponential moving average of the weights beside the model, used for evaluation."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
centres = torch.randn(5, 10)
model = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 5))
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(100):
    y = torch.randint(5, (64,))
    loss = F.cross_entropy(model(centres[y] + torch.randn(64, 10)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update_parameters(model)
with torch.no_grad():
    y = torch.randint(5, (500,))
    print("loss", round(F.cross_entropy(average(centres[y] + torch.randn(500, 10)), y).item(), 3))
