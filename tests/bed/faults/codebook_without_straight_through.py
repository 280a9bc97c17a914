"""A VQ-VAE decodes the codebook vectors directly: no gradient of the reconstruction reaches the encoder.

expect: no-gradient
where: encoder.*
source: [Biohub/esm#92](https://github.com/Biohub/esm/issues/92)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.codebook = nn.Embedding(16, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        z = self.encoder(x)
        index = torch.cdist(z.detach(), self.codebook.weight.detach()).argmin(1)
        q = self.codebook(index)
        vq = F.mse_loss(q, z.detach())
        return self.decoder(q), vq  # <- cause, right: return self.decoder(z + (q - z).detach()), vq


model = VQ()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
centres = torch.randn(8, 16)
for step in range(60):
    x = centres[torch.randint(8, (64,))] + 0.2 * torch.randn(64, 16)
    recon, vq = model(x)
    loss = F.mse_loss(recon, x) + vq
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
