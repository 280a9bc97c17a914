"""A mask of gaps multiplies the mean squared error: all places count, also those without a measurement.

expect: averaged-first
where: loss@1
source: [jingyaogong/minimind#51](https://github.com/jingyaogong/minimind/issues/51)
"""

import torch
import torch.nn as nn

torch.manual_seed(0)
# sensor series with gaps: predict the next value at each step, gaps must not count
class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        h, _ = self.rnn(x)
        return self.out(h).squeeze(-1)

def batch(n=32, T=30):
    phase = torch.rand(n, 1) * 6.28
    t = torch.arange(T + 1)[None] * 0.3
    s = torch.sin(t + phase) + 0.05 * torch.randn(n, T + 1)
    observed = (torch.rand(n, T + 1) > 0.3).float()
    s = s * observed
    x = torch.stack([s[:, :-1], observed[:, :-1], t.expand(n, -1)[:, :-1] / 9], -1)
    return x, s[:, 1:], observed[:, 1:]

model = Forecaster()
criterion = nn.MSELoss()  # <- cause, right: criterion = nn.MSELoss(reduction="none")
opt = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    x, target, mask = batch()
    pred = model(x)
    loss = criterion(pred, target)
    loss = (loss * mask).sum() / mask.sum()  # <- cause
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
