"""A policy that ends in a softmax is given to Categorical as logits.

expect: softmax-before-cross-entropy
source: PyTorch's documentation of torch.distributions.Categorical: probs and logits
"""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3), nn.Softmax(dim=-1))
opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
best = torch.randn(4, 3)
baseline = 0.3
for step in range(80):
    s = torch.randn(64, 4)
    d = Categorical(logits=policy(s))  # <- cause, right: d = Categorical(probs=policy(s))
    a = d.sample()
    r = (a == (s @ best).argmax(1)).float()
    loss = -(d.log_prob(a) * (r - baseline)).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    baseline = 0.9 * baseline + 0.1 * r.mean().item()
print(r.mean().item())
