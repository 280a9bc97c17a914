"""Discrete choices by Gumbel-softmax with hard samples and a falling temperature."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
decoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
for step in range(100):
    batch = x[torch.randint(len(x), (64,))]
    logits = encoder(batch).reshape(-1, 4, 8)
    code = F.gumbel_softmax(logits, tau=max(0.5, 1 - step / 100), hard=True)
    loss = F.mse_loss(decoder(code.flatten(1)), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
