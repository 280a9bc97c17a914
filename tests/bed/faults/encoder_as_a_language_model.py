"""A language model of nn.TransformerEncoder without a mask: each position sees the token that it is to predict.

expect: sees-the-future
source: [pytorch/tutorials#2478](https://github.com/pytorch/tutorials/issues/2478)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class TransformerModel(nn.Module):
    def __init__(self, ntoken=16, d=32):
        super().__init__()
        self.encoder = nn.Embedding(ntoken, d)
        self.position = nn.Parameter(0.1 * torch.randn(24, d))
        layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2)
        self.decoder = nn.Linear(d, ntoken)

    def forward(self, src):
        x = self.encoder(src) * 32**0.5 + self.position[: src.shape[1]]
        return self.decoder(self.transformer(x))  # <- cause, right: return self.decoder(self.transformer(x, mask=nn.Transformer.generate_square_subsequent_mask(src.shape[1])))


model = TransformerModel()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(70):
    text = torch.randint(16, (16, 25))
    logits = model(text[:, :-1])
    loss = F.cross_entropy(logits.reshape(-1, 16), text[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
