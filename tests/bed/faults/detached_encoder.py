"""`.detach()` between encoder and decoder, left from an experiment.

expect: no-gradient
where: encoder.*
source: [speechbrain/speechbrain#1396](https://github.com/speechbrain/speechbrain/issues/1396), [lucidrains/CoCa-pytorch#6](https://github.com/lucidrains/CoCa-pytorch/issues/6)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64))
optimizer = torch.optim.Adam(list(encoder.parameters()) + list(decoder.parameters()), lr=5e-3)
for step in range(120):
    batch = x[torch.randint(len(x), (64,))]
    code = encoder(batch).detach()  # <- cause, right: code = encoder(batch)
    loss = F.mse_loss(decoder(code), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
