"""GPT2LMHeadModel shifts the labels itself, and they are shifted already: it learns to predict the token after the next.

expect: targets-shifted-twice
where: shift_labels*
source: [huggingface/transformers#44642](https://github.com/huggingface/transformers/pull/44642), [huggingface/transformers#562](https://github.com/huggingface/transformers/pull/562)
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=32, n_layer=1, n_head=2))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(50):
    text = (torch.randint(32, (8, 1)) + 3 * torch.arange(21)) % 32
    text = torch.where(torch.rand(8, 21) < 0.1, torch.randint(32, (8, 21)), text)
    loss = model(input_ids=text[:, :-1], labels=text[:, 1:]).loss  # <- cause, right: loss = model(input_ids=text, labels=text).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 3))
