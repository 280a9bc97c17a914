"""Text classification with EmbeddingBag, offsets, and SGD with a decaying rate (the tutorial's shape)."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(100, 16, sparse=False)
        self.fc = nn.Linear(16, 4)
        self.embedding.weight.data.uniform_(-0.5, 0.5)
        self.fc.weight.data.uniform_(-0.5, 0.5)
        self.fc.bias.data.zero_()

    def forward(self, text, offsets):
        return self.fc(self.embedding(text, offsets))


net = Net()
opt = torch.optim.SGD(net.parameters(), lr=2.0)
sched = torch.optim.lr_scheduler.StepLR(opt, 20, gamma=0.5)
for step in range(70):
    y = torch.randint(4, (32,))
    texts = [torch.randint(25 * c, 25 * c + 25, (torch.randint(3, 9, (1,)).item(),)) for c in y.tolist()]
    texts = [torch.where(torch.rand(len(t)) < 0.3, torch.randint(100, t.shape), t) for t in texts]
    offsets = torch.tensor([0] + [len(t) for t in texts[:-1]]).cumsum(0)
    loss = F.cross_entropy(net(torch.cat(texts), offsets), y)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    opt.step()
    sched.step()
print(loss.item())
