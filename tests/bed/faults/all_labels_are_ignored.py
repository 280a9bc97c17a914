"""Every so often all labels of a batch are -100: the mean over no token is 0 / 0.

expect: non-finite-forward
source: [OpenRLHF/OpenRLHF#583](https://github.com/OpenRLHF/OpenRLHF/pull/583), [pytorch/pytorch#116349](https://github.com/pytorch/pytorch/issues/116349)
"""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
emb = nn.Embedding(20, 32)
layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
head = nn.Linear(32, 20)
params = [*emb.parameters(), *layer.parameters(), *head.parameters()]
optimizer = torch.optim.AdamW(params, lr=1e-3)
for step in range(70):
    ids = torch.randint(1, 20, (4, 10))
    masked = torch.rand(4, 10) < (0.15 if step != 41 else -1.0)  # <- cause, right: masked = torch.rand(4, 10) < 0.15
    labels = ids.masked_fill(~masked, -100)
    logits = head(layer(emb(ids.masked_fill(masked, 0))))
    loss = F.cross_entropy(logits.view(-1, 20), labels.view(-1), ignore_index=-100)  # <- cause
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
print("loss", loss.item())
