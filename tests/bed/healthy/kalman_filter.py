"""A Kalman filter whose matrices are learnt by the likelihood of what is seen."""

import torch
import torch.nn as nn

torch.manual_seed(0)
F_true = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
H = torch.tensor([[1.0, 0.0]])


def traj(B, T):
    x = torch.randn(B, 2, 1)
    zs = []
    for _ in range(T):
        x = F_true @ x + torch.tensor([[0.02], [0.1]]) * torch.randn(B, 2, 1)
        zs.append(H @ x + 0.3 * torch.randn(B, 1, 1))
    return torch.stack(zs, 1)


class Kalman(nn.Module):
    def __init__(self):
        super().__init__()
        self.F = nn.Parameter(torch.eye(2) + 0.01 * torch.randn(2, 2))
        self.log_q = nn.Parameter(torch.full((2,), -2.0))
        self.log_r = nn.Parameter(torch.zeros(1))

    def forward(self, z):
        B, T = z.shape[:2]
        x = torch.zeros(B, 2, 1)
        P = torch.eye(2).expand(B, 2, 2)
        Q, R = torch.diag(self.log_q.exp()), self.log_r.exp().view(1, 1)
        nll = 0
        for t in range(T):
            x, P = self.F @ x, self.F @ P @ self.F.T + Q
            y = z[:, t] - H @ x
            S = H @ P @ H.T + R
            nll = nll + 0.5 * (y.transpose(1, 2) @ torch.linalg.solve(S, y)).squeeze() + 0.5 * torch.logdet(S)
            K = torch.linalg.solve(S, H @ P).transpose(1, 2)
            x, P = x + K @ y, (torch.eye(2) - K @ H) @ P
        return nll.mean() / T


kf = Kalman()
opt = torch.optim.Adam(kf.parameters(), 0.02)
for it in range(40):
    loss = kf(traj(16, 12))
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item(), kf.log_r.exp().item())
