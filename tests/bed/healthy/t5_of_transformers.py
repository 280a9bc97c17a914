"""T5 of transformers learns to reverse, relative positions, RMS norm."""

import torch
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
model = T5ForConditionalGeneration(
    T5Config(
        vocab_size=24,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
)
opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(40):
    ids = torch.randint(2, 24, (16, 6))
    loss = model(input_ids=ids, labels=ids.flip(1)).loss
    opt.zero_grad()
    loss.backward()
    opt.step()
print(loss.item())
