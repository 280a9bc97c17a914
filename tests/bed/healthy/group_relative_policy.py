"""GRPO on a toy: groups of answers, rewards normalised within each, two updates for each rollout."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)
V, L, G = 8, 4, 8


class LM(nn.Module):
    def __init__(self, d=48):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, d), nn.Embedding(L + 1, d)
        self.blk = nn.TransformerEncoderLayer(d, 2, 96, dropout=0.0, batch_first=True)
        self.lm_head = nn.Linear(d, V)

    def forward(self, x):
        T = x.shape[1]
        m = nn.Transformer.generate_square_subsequent_mask(T)
        return self.lm_head(self.blk(self.tok(x) + self.pos(torch.arange(T)), src_mask=m))


model = LM()
ref = copy.deepcopy(model)
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)


def logps(m, seq):
    lp = F.log_softmax(m(seq[:, :-1]), -1)
    return torch.gather(lp, -1, seq[:, 1:, None]).squeeze(-1)


for it in range(20):
    prompt = torch.randint(0, V, (6, 1)).repeat_interleave(G, 0)
    seq = prompt
    with torch.no_grad():
        for _ in range(L):
            probs = F.softmax(model(seq)[:, -1], -1)
            seq = torch.cat([seq, torch.multinomial(probs, 1)], 1)
        old, refl = logps(model, seq), logps(ref, seq)
    scores = (seq[:, 1:] == prompt).float().mean(1)
    grouped = scores.view(-1, G)
    advantage = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).view(-1, 1)
    for _ in range(2):
        new = logps(model, seq)
        coef_1 = torch.exp(new - old)
        coef_2 = torch.clamp(coef_1, 0.8, 1.2)
        per_token_kl = torch.exp(refl - new) - (refl - new) - 1
        per_token_loss = -torch.min(coef_1 * advantage, coef_2 * advantage) + 0.04 * per_token_kl
        loss = per_token_loss.mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
print("score", scores.mean().item())
