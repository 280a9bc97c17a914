"""A discrete code is one_hot(argmax(logits)): no gradient reaches the encoder.

expect: no-gradient
where: encoder.*
source: [lizekang/ITDD#10](https://github.com/lizekang/ITDD/issues/10); Jang et al., Categorical reparameterization, 2017
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
encoder, decoder = nn.Linear(64, 16), nn.Linear(16, 64)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
for step in range(80):
    batch = x[torch.randint(len(x), (64,))]
    logits = encoder(batch)
    code = F.one_hot(logits.argmax(1), 16).float()  # <- cause, right: code = F.gumbel_softmax(logits, hard=True)
    loss = F.mse_loss(decoder(code), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
