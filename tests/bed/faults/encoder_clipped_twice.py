"""The encoder's gradients are clipped twice, and the decoder's not at all.

expect: clipping-idle
effects: gradient-changed
source: [VGraphRNN/VGRNN#4](https://github.com/VGraphRNN/VGRNN/issues/4), [yoshitomo-matsubara/torchdistill#80](https://github.com/yoshitomo-matsubara/torchdistill/pull/80) (clipping without effect)
"""

import torch
import torch.nn as nn

torch.manual_seed(0)
# numbers in, the same numbers backwards out
V, H, T = 12, 32, 8
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(V, H); self.gru = nn.GRU(H, H, batch_first=True)
    def forward(self, x):
        return self.gru(self.emb(x))[1]
class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(V, H); self.gru = nn.GRU(H, H, batch_first=True); self.out = nn.Linear(H, V)
    def forward(self, y, h):
        o, h = self.gru(self.emb(y), h)
        return self.out(o)
encoder, decoder = Encoder(), Decoder()
encoder_optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
decoder_optimizer = torch.optim.SGD(decoder.parameters(), lr=0.5)
for it in range(80):
    src = torch.randint(2, V, (32, T))
    tgt = src.flip(1)
    inp = torch.cat([torch.ones(32, 1, dtype=torch.long), tgt[:, :-1]], 1)
    encoder_optimizer.zero_grad(); decoder_optimizer.zero_grad()
    loss = nn.functional.cross_entropy(decoder(inp, encoder(src)).reshape(-1, V), tgt.reshape(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(encoder.parameters(), 0.25)
    nn.utils.clip_grad_norm_(encoder.parameters(), 0.25)  # <- cause, right: nn.utils.clip_grad_norm_(decoder.parameters(), 0.25)
    encoder_optimizer.step(); decoder_optimizer.step()
print(loss.item())
