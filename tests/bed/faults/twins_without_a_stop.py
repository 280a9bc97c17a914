"""SimSiam without its stop-gradient: both towers move towards each other, and all representations become one.

expect: trained-target
source: [PatrickHua/SimSiam#39](https://github.com/PatrickHua/SimSiam/issues/39), [lightly-ai/lightly#559](https://github.com/lightly-ai/lightly/issues/559)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
predictor = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
optimizer = torch.optim.Adam([*encoder.parameters(), *predictor.parameters()], lr=5e-3)
for step in range(100):
    batch = x[torch.randint(len(x), (64,))]
    a, b = (encoder(batch + 0.1 * torch.randn_like(batch)) for _ in range(2))
    to_a, to_b = a, b  # <- cause, right: to_a, to_b = a.detach(), b.detach()
    loss = -(F.cosine_similarity(predictor(a), to_b).mean() + F.cosine_similarity(predictor(b), to_a).mean()) / 2  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("deviation", round(F.normalize(encoder(x), dim=1).std(0).mean().item(), 4))
