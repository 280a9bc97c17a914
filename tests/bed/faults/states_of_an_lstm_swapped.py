"""The output and the cell state of an LSTM cell are taken in the wrong order.

expect: states-swapped
where: cell
source: [microsoft/nni#2839](https://github.com/microsoft/nni/issues/2839), [microsoft/nni#2842](https://github.com/microsoft/nni/pull/2842)
"""

import torch
import torch.nn as nn

torch.manual_seed(0)

class Model(nn.Module):
    def __init__(self, n_in=1, n_hidden=32):
        super().__init__()
        self.n_hidden = n_hidden
        self.cell = nn.LSTMCell(n_in, n_hidden)
        self.linear = nn.Linear(n_hidden, 1)

    def forward(self, seq):
        h = torch.zeros(seq.size(0), self.n_hidden)
        c = torch.zeros(seq.size(0), self.n_hidden)
        outputs = []
        for x in seq.unbind(1):
            c, h = self.cell(x, (h, c))  # <- cause, right: h, c = self.cell(x, (h, c))
            outputs.append(self.linear(h))
        return torch.stack(outputs, 1)

net = Model()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for i in range(60):
    phase = torch.rand(32, 1, 1) * 6.28
    wave = torch.sin(torch.arange(21.0)[None, :, None] * 0.4 + phase)
    pred = net(wave[:, :-1])
    loss = nn.functional.mse_loss(pred, wave[:, 1:])
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    opt.step()
print("mse", loss.item())
