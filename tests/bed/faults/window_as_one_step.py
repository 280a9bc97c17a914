"""A window of 12 values becomes one step of 12 features, so the LSTM never carries anything on.

expect: one-step-sequence
where: lstm
source: [titu1994/LSTM-FCN#9](https://github.com/titu1994/LSTM-FCN/issues/9)
"""

import torch
from torch import nn

torch.manual_seed(0)
series = torch.sin(torch.arange(600) * 0.2) + 0.1 * torch.randn(600)
look = 12
X = torch.stack([series[i : i + look] for i in range(580)])
Y = torch.stack([series[i + look] for i in range(580)]).unsqueeze(1)
X = X.unsqueeze(1)  # <- cause


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(look, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])


net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
crit = nn.MSELoss()
for it in range(60):
    i = torch.randint(0, 580, (32,))
    opt.zero_grad()
    loss = crit(net(X[i]), Y[i])
    loss.backward()
    opt.step()
print(loss.item())
