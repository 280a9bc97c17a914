"""torch.clamp of a gradient returns a new tensor, which nothing uses.

expect: clipping-idle
where: weight_ih_l0, weight_hh_l0, bias_ih_l0, rnn.*
effects: learning-rate-too-high, exploding-gradient
source: PyTorch's documentation of torch.clamp (it returns a new tensor); [NVIDIA/OpenSeq2Seq#192](https://github.com/NVIDIA/OpenSeq2Seq/pull/192) (clipping without effect)
"""

import torch
import torch.nn as nn

torch.manual_seed(0)
rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
nn.init.eye_(rnn.weight_hh_l0)
fc = nn.Linear(32, 1)
params = list(rnn.parameters()) + list(fc.parameters())
opt = torch.optim.RMSprop(params, lr=1e-3)
for step in range(80):
    x = torch.randn(16, 25, 8)
    y = x[:, :, 0].cumsum(1)[:, -1:] / 5
    out, h = rnn(x)
    loss = ((fc(out[:, -1]) - y) ** 2).mean()
    opt.zero_grad()
    loss.backward()
    for p in params:
        torch.clamp(p.grad, -0.1, 0.1)  # <- cause, right: p.grad.clamp_(-0.1, 0.1)
    opt.step()
print(loss.item())
