"""Next values of sensors with gaps: the squared errors are masked before the mean."""

import torch
import torch.nn as nn

torch.manual_seed(0)
rnn, out = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)
params = [*rnn.parameters(), *out.parameters()]
opt = torch.optim.Adam(params, lr=1e-2)
for step in range(100):
    phase = torch.rand(32, 1) * 6.28
    s = torch.sin(torch.arange(31.0)[None] * 0.3 + phase) + 0.05 * torch.randn(32, 31)
    observed = (torch.rand(32, 31) > 0.3).float()
    s = s * observed
    h, _ = rnn(torch.stack([s[:, :-1], observed[:, :-1]], -1))
    error = nn.functional.mse_loss(out(h).squeeze(-1), s[:, 1:], reduction="none")
    mask = observed[:, 1:]
    loss = (error * mask).sum() / mask.sum().clamp(min=1)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(params, 5.0)
    opt.step()
print("loss", loss.item())
