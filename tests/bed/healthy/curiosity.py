"""Curiosity: inverse and forward model of features, whose error is a bonus; all walkers begin at the origin."""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(1)


class ICM(nn.Module):
    def __init__(self, obs_dim=6, n_act=4, feat=16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(obs_dim, 32), nn.ELU(), nn.Linear(32, feat))
        self.inverse = nn.Sequential(nn.Linear(2 * feat, 32), nn.ReLU(), nn.Linear(32, n_act))
        self.forward_model = nn.Sequential(nn.Linear(feat + n_act, 32), nn.ReLU(), nn.Linear(32, feat))
        self.n_act = n_act

    def forward(self, s, a, s2):
        phi, phi2 = self.encoder(s), self.encoder(s2)
        logits = self.inverse(torch.cat([phi, phi2], -1))
        pred = self.forward_model(torch.cat([phi, F.one_hot(a, self.n_act).float()], -1))
        inv_loss = F.cross_entropy(logits, a)
        per_sample = 0.5 * (pred - phi2.detach()).pow(2).sum(-1)
        return inv_loss, per_sample.mean(), per_sample.detach()


policy = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
baseline = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
icm = ICM()
opt = torch.optim.Adam([*policy.parameters(), *baseline.parameters(), *icm.parameters()], lr=1e-3)
dirs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
W = torch.randn(2, 4)


def observe(p):
    return torch.cat([p, torch.sin(p @ W)], 1)


pos = torch.zeros(64, 2)
for it in range(40):
    s = observe(pos)
    dist = torch.distributions.Categorical(logits=policy(s))
    a = dist.sample()
    pos = (pos + 0.3 * dirs[a]).clamp(-2, 2)
    s2 = observe(pos)
    inv, fwd, bonus = icm(s, a, s2)
    ext = -(pos - 1.5).norm(dim=1)
    total_reward = ext + 0.1 * bonus
    v = baseline(s).squeeze(1)
    adv = total_reward - v.detach()
    pg = -(dist.log_prob(a) * adv).mean()
    loss = pg + 0.5 * F.mse_loss(v, total_reward) + 0.8 * inv + 0.2 * fwd - 0.01 * dist.entropy().mean()
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
print(f"inverse {inv.item():.3f} forward {fwd.item():.3f}")
