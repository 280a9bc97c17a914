"""A decoder of two layers, one of which has no causal mask: it reads the token that it is to predict.

expect: sees-the-future
where: second, second.*
source: [huggingface/transformers#48745](https://github.com/huggingface/transformers/issues/48745), [facebookresearch/xformers#103](https://github.com/facebookresearch/xformers/issues/103)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
V, T, D = 16, 12, 32


class Layer(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.causal, self.qkv, self.proj = causal, nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))  # <- cause


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.first, self.second = Layer(True), Layer(False)  # <- cause, right: self.first, self.second = Layer(True), Layer(True)
        self.out = nn.Linear(D, V)

    def forward(self, tokens):
        return self.out(self.second(self.first(self.embed(tokens) + self.places.weight)))


model = Decoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(100):
    tokens = torch.randint(V, (64, T + 1))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
