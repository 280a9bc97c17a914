"""The helper that noises a picture ignores the noise it is given and draws its own, before the network runs.

expect: unfittable-labels
where: noise, eps
source: Ho et al., Denoising diffusion probabilistic models, 2020, algorithm 1: the noise that was added is predicted
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
pictures = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
kept = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 50), 0)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(50, 16)
        self.enter, self.middle, self.leave = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 16), (16, 16), (16, 1))
        )

    def forward(self, x, t):
        h = torch.relu(self.enter(x)) + self.time(t)[..., None, None]
        return self.leave(torch.relu(self.middle(h)))


def q_sample(x, t, noise):
    share = kept[t].view(-1, 1, 1, 1)
    return share.sqrt() * x + (1 - share).sqrt() * torch.randn_like(x)  # <- cause, right: return share.sqrt() * x + (1 - share).sqrt() * noise


model = Denoiser()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
criterion = nn.MSELoss()
for step in range(60):
    x = pictures[torch.randint(len(pictures), (32,))]
    t = torch.randint(0, 50, (32,))
    noise = torch.randn_like(x)
    loss = criterion(model(q_sample(x, t, noise), t), noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
