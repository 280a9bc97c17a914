"""nn.TransformerEncoder with src_key_padding_mask and a masked mean."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 32, padding_idx=0), nn.Embedding(10, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 2)

    def forward(self, tokens):
        padding = tokens == 0
        h = self.encoder(self.embed(tokens) + self.places.weight, src_key_padding_mask=padding)
        kept = (~padding)[..., None].float()
        return self.out((h * kept).sum(1) / kept.sum(1))


model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(80):
    lengths = torch.randint(3, 11, (32,))
    tokens = torch.randint(1, 20, (32, 10)) * (torch.arange(10) < lengths[:, None])
    loss = F.cross_entropy(model(tokens), (tokens == 7).any(1).long())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
print("loss", round(loss.item(), 3))
