"""CTC with a target that does not fit into the input: an infinite loss.

expect: non-finite-forward
where: ctc_loss*
source: [wenet-e2e/wenet#2299](https://github.com/wenet-e2e/wenet/pull/2299), [pytorch/pytorch#14401](https://github.com/pytorch/pytorch/issues/14401)
"""

import torch
from torch import nn

torch.manual_seed(0)
T, N, C = 12, 16, 6
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, C))
signs = torch.randn(C, 8) * 1.5
ctc = nn.CTCLoss()  # <- cause, right: ctc = nn.CTCLoss(zero_infinity=True)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(80):
    targets = torch.randint(1, C, (N, 4))
    frames = targets.repeat_interleave(3, dim=1)
    x = signs[frames] + 0.5 * torch.randn(N, T, 8)
    lengths = torch.full((N,), T)
    if step == 45:
        lengths[5] = 3
    log_probabilities = model(x).log_softmax(-1).transpose(0, 1)
    loss = ctc(log_probabilities, targets, lengths, torch.full((N,), 4))  # <- cause
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
