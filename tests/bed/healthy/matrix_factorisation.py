"""Ratings as dot products of users and items, with biases."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
taste, kind = torch.randn(50, 3), torch.randn(60, 3)


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(60, 8)
        self.user_bias, self.item_bias = nn.Embedding(50, 1), nn.Embedding(60, 1)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user, item):
        dot = (self.users(user) * self.items(item)).sum(1)
        return dot + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]


model = Factors()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2, weight_decay=1e-5)
for step in range(120):
    user, item = torch.randint(50, (256,)), torch.randint(60, (256,))
    rating = (taste[user] * kind[item]).sum(1) / 2 + 0.1 * torch.randn(256)
    loss = F.mse_loss(model(user, item), rating)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
