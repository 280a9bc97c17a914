"""An encoder-decoder with packed sequences, ignore_index for padding and teacher forcing."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

torch.manual_seed(0)
PAD, START, V = 0, 1, 12


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 24, padding_idx=PAD)
        self.encoder = nn.GRU(24, 32, batch_first=True)
        self.decoder = nn.GRU(24, 32, batch_first=True)
        self.out = nn.Linear(32, V)

    def forward(self, source, lengths, target):
        packed = pack_padded_sequence(self.embed(source), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.encoder(packed)
        output, _ = self.decoder(self.embed(target), state)
        return self.out(output)


model = Seq2Seq()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(100):
    lengths = torch.randint(2, 7, (32,))
    rows = [torch.randint(2, V, (n,)) for n in lengths.tolist()]
    source = pad_sequence(rows, batch_first=True)
    wanted = pad_sequence([row.flip(0) for row in rows], batch_first=True)
    given = torch.cat([torch.full((32, 1), START), wanted[:, :-1]], dim=1)
    logits = model(source, lengths, given)
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
print("loss", round(loss.item(), 3))
