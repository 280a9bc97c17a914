"""clip_grad_norm_ is called after step(): the large gradients have moved the weights before they are clipped.

expect: clipping-misplaced, gradient-changed
effects: update-too-large, learning-rate-too-high, exploding-gradient, loss-spike
source: [VGraphRNN/VGRNN#4](https://github.com/VGraphRNN/VGRNN/issues/4), [awslabs/graphstorm#1366](https://github.com/awslabs/graphstorm/issues/1366)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
rnn, head = nn.RNN(1, 32, batch_first=True, nonlinearity="relu"), nn.Linear(32, 1)
nn.init.orthogonal_(rnn.weight_hh_l0, gain=1.15)
parameters = [*rnn.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.02)
for step in range(80):
    x = torch.rand(32, 30, 1)
    loss = F.mse_loss(head(rnn(x)[0][:, -1])[:, 0], x.mean((1, 2)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- cause, right: nn.utils.clip_grad_norm_(parameters, 1.0)
    nn.utils.clip_grad_norm_(parameters, 1.0)  # <- cause, right: optimizer.step()
print("loss", round(loss.item(), 4))
