"""A small encoder with weight decay off for biases and norms, and a linear warm-up and decay."""

import torch
import torch.nn as nn

torch.manual_seed(0)
vocab, classes = 60, 3


class Encoder(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.pos = nn.Parameter(torch.randn(1, 12, d) * 0.02)
        self.layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.LayerNorm = nn.LayerNorm(d)
        self.classifier = nn.Linear(d, classes)

    def forward(self, ids):
        h = self.LayerNorm(self.layer(self.emb(ids) + self.pos))
        return self.classifier(h[:, 0])


model = Encoder()
no_decay = ["bias", "LayerNorm.weight", "norm1.weight", "norm2.weight"]
groups = [
    {"params": [p for n, p in model.named_parameters() if not any(e in n for e in no_decay)], "weight_decay": 0.01},
    {"params": [p for n, p in model.named_parameters() if any(e in n for e in no_decay)], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=2e-3)
total, warm = 90, 9
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda s: s / warm if s < warm else max(0.0, (total - s) / (total - warm))
)
for step in range(total):
    ids = torch.randint(1, vocab, (32, 12))
    ids[:, 0] = 0
    labels = (ids[:, 1:] < 15).sum(1).clamp(max=5) // 2
    loss = nn.functional.cross_entropy(model(ids), labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
print("loss", loss.item())
