"""A2C over several environments: generalised advantages, and a policy whose last layer begins near 0."""

import torch
from torch import nn, optim
from torch.distributions import Categorical

torch.manual_seed(3)
N_ENVS, T, GAMMA, LAM = 8, 10, 0.95, 0.9


class ActorCritic(nn.Module):
    def __init__(self, obs_size, n_actions):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(obs_size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.pi = nn.Linear(64, n_actions)
        self.v = nn.Linear(64, 1)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.orthogonal_(m.weight, 2**0.5)
                nn.init.zeros_(m.bias)
        nn.init.orthogonal_(self.pi.weight, 0.01)
        nn.init.orthogonal_(self.v.weight, 1.0)

    def forward(self, x):
        h = self.shared(x)
        return Categorical(logits=self.pi(h)), self.v(h).squeeze(-1)


class VecGrid:
    """walk to the goal on a line of 7 cells"""

    def __init__(self, n):
        self.n = n
        self.pos = torch.randint(0, 7, (n,))
        self.goal = torch.randint(0, 7, (n,))

    def obs(self):
        return torch.cat([nn.functional.one_hot(self.pos, 7), nn.functional.one_hot(self.goal, 7)], 1).float()

    def step(self, a):
        self.pos = (self.pos + a - 1).clamp(0, 6)
        done = self.pos == self.goal
        r = done.float() - 0.05
        self.pos = torch.where(done, torch.randint(0, 7, (self.n,)), self.pos)
        self.goal = torch.where(done, torch.randint(0, 7, (self.n,)), self.goal)
        return self.obs(), r, done.float()


envs = VecGrid(N_ENVS)
net = ActorCritic(14, 3)
opt = optim.RMSprop(net.parameters(), lr=7e-4, eps=1e-5, alpha=0.99)
obs = envs.obs()
for update in range(40):
    logps, values, rewards, masks, entropies = [], [], [], [], []
    for _ in range(T):
        dist, value = net(obs)
        act = dist.sample()
        obs, rew, done = envs.step(act)
        logps.append(dist.log_prob(act))
        values.append(value)
        entropies.append(dist.entropy())
        rewards.append(rew)
        masks.append(1 - done)
    with torch.no_grad():
        next_value = net(obs)[1]
    gae, advs, rets = 0, [], []
    vals = [v.detach() for v in values] + [next_value]
    for t in reversed(range(T)):
        delta = rewards[t] + GAMMA * vals[t + 1] * masks[t] - vals[t]
        gae = delta + GAMMA * LAM * masks[t] * gae
        advs.insert(0, gae)
        rets.insert(0, gae + vals[t])
    advs, rets = torch.cat(advs), torch.cat(rets)
    logps, values, entropies = torch.cat(logps), torch.cat(values), torch.cat(entropies)
    policy_loss = -(logps * advs).mean()
    value_loss = 0.5 * (rets - values).pow(2).mean()
    loss = policy_loss + 0.5 * value_loss - 0.01 * entropies.mean()
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    opt.step()
print("mean reward", torch.stack(rewards).mean().item())
