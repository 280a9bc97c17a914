"""python -m tests.zoo.transformers [NAME ...]: one training step of small models of `transformers`, verified.

Each model comes from a random configuration, and is trained in training mode on a batch with pad tokens. One line a
model: how many nodes had which verdict, and the seconds that recording and verifying took. `-v` adds what was said
of the nodes that do not agree.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import chainrule
from chainrule.document import Table, Verdict

VOCABULARY, PAD, IGNORED = 37, 0, -100
DIMENSIONS = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGES = {"image_size": 16, "patch_size": 4, "num_labels": 5}
CONVOLUTIONS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
DECODER = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 1,
}  # fmt: skip
SPEECH = {"conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [8, 4], "num_feat_extract_layers": 2}

SEED = int(os.environ.get("CHAINRULE_TEST_SEED", "0"))

Batch = Callable[[], dict[str, Any]]


def tokens(*shape: int) -> tuple[Tensor, Tensor]:
    """Tokens and their mask: the second half of every second sequence is padding."""
    ids = torch.randint(3, VOCABULARY, shape)
    ids[1::2, shape[-1] // 2 :] = PAD
    return ids, (ids != PAD).long()


def text(labels: Tensor | None = None, every: int = 1) -> dict[str, Any]:
    """Tokens with their mask, and labels: every so many of the tokens themselves, where no others are given."""
    ids, mask = tokens(2, 10)
    own = ids.masked_fill((torch.arange(10) % every > 0) | (mask == 0), IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": own if labels is None else labels}


def masked() -> dict[str, Any]:
    return text(every=3)


def classes() -> dict[str, Any]:
    return text(torch.tensor([1, 0]))


def targets() -> Tensor:
    labels, kept = tokens(2, 8)
    return labels.masked_fill(kept == 0, IGNORED)


def sequences() -> dict[str, Any]:
    return text(targets())


def images(size: int) -> Batch:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size), "labels": torch.tensor([1, 3])}


def segments() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.randint(0, 5, (2, 32, 32))}


def pairs() -> dict[str, Any]:
    ids, mask = tokens(2, 10)
    ids[:, -1] = DIMENSIONS["eos_token_id"]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True}


def dictation() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 32), "labels": targets()}


def speech() -> dict[str, Any]:
    heard = torch.ones(2, 400, dtype=torch.long)
    heard[1, 300:] = 0
    labels = torch.tensor([[3, 4, 5], [6, 7, IGNORED]])
    return {"input_values": torch.randn(2, 400), "attention_mask": heard, "labels": labels}


@dataclass(frozen=True)
class Model:
    """A model of transformers by the names of its classes, small."""

    name: str
    head: str
    batch: Batch
    options: dict[str, Any]
    mask: bool = True  # whether the model is told which tokens are padding

    @property
    def title(self) -> str:
        return f"{self.name}{self.head}{'' if self.mask else ', no mask'}"

    def made(self) -> Any:
        """The model in training mode, with the same weights each time."""
        import transformers

        configuration = getattr(transformers, self.name + "Config")(**self.options)
        torch.manual_seed(SEED)
        return getattr(transformers, self.name + self.head)(configuration).train()


def _text(name: str, head: str, batch: Batch, **options: Any) -> Model:
    return Model(name, head, batch, {**DIMENSIONS, **options})


def _causal(name: str, **options: Any) -> Model:
    return _text(name, "ForCausalLM", text, **options)


def _masked(name: str, **options: Any) -> Model:
    return _text(name, "ForMaskedLM", masked, **options)


def _vision(name: str, size: int = 32, **options: Any) -> Model:
    return Model(name, "ForImageClassification", images(size), options)


_ENCODER = {key: DIMENSIONS[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
_PATCHES = {**_ENCODER, "intermediate_size": 24, **IMAGES}
_TOWER = {**_ENCODER, "intermediate_size": 24, "projection_dim": 8}

MODELS = [
    _masked("Bert"),
    _masked("Roberta", pad_token_id=PAD),
    _masked("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    _masked("Albert", embedding_size=8),
    _masked("Electra", embedding_size=8),
    _masked("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    _masked("MPNet"),
    _masked("ModernBert", cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4),
    _masked("FNet", type_vocab_size=2),
    _masked("XLMRoberta"),
    Model(
        "Funnel",
        "ForMaskedLM",
        masked,
        {"vocab_size": VOCABULARY, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1]},
    ),
    Model(
        "GPT2",
        "LMHeadModel",
        text,
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
    ),
    Model(
        "GPT2",
        "ForSequenceClassification",
        classes,
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": PAD},
    ),
    _causal("GPTNeoX"),
    _causal("GPTNeo", num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2, window_size=4),
    _causal("GPTJ", n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=32),
    _causal("Llama", num_key_value_heads=1),
    _causal("Mistral", num_key_value_heads=1, sliding_window=4),
    _causal("Mixtral", num_key_value_heads=1, num_local_experts=3),
    _causal("Qwen2", num_key_value_heads=1),
    _causal("Qwen3", num_key_value_heads=1, head_dim=8),
    _causal("Gemma", num_key_value_heads=1, head_dim=8),
    _causal("Gemma2", num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8),
    _causal("OPT", ffn_dim=24, word_embed_proj_dim=16),
    _causal("Bloom", n_layer=2, n_head=2),
    _causal("Falcon", alibi=False, new_decoder_architecture=False),
    _causal("Phi"),
    _causal("Phi3", num_key_value_heads=1),
    _causal("Olmo2", num_key_value_heads=1),
    _causal("StableLm", num_key_value_heads=1),
    _causal("Starcoder2", num_key_value_heads=1),
    _text("Mamba", "ForCausalLM", text, state_size=4, time_step_rank=2, use_cache=False),
    _text("Rwkv", "ForCausalLM", text, attention_hidden_size=16, context_length=16, use_cache=False),
    Model(
        "XLNet",
        "LMHeadModel",
        text,
        {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    ),
    _text(
        "T5",
        "ForConditionalGeneration",
        sequences,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=PAD,
    ),
    _text("Bart", "ForConditionalGeneration", sequences, d_model=16, **DECODER),
    _text("Pegasus", "ForConditionalGeneration", sequences, d_model=16, **DECODER),
    _vision("ViT", 16, **_PATCHES),
    _vision("DeiT", 16, **_PATCHES),
    _vision("Beit", 16, **_PATCHES, use_relative_position_bias=True),
    _vision("Dinov2", 16, **_PATCHES, drop_path_rate=0.1),
    _vision(
        "Swin",
        16,
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
        num_labels=5,
    ),
    _vision("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5),
    _vision("ConvNextV2", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5),
    _vision("ResNet", **CONVOLUTIONS),
    _vision("RegNet", **CONVOLUTIONS, groups_width=8),
    _vision("MobileNetV1", depth_multiplier=0.25, min_depth=4, num_labels=5),
    _vision("MobileNetV2", depth_multiplier=0.25, min_depth=4, depth_divisible_by=4, num_labels=5),
    _vision(
        "MobileViT",
        32,
        image_size=32,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        num_labels=5,
    ),
    _vision(
        "PoolFormer",
        32,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        num_labels=5,
    ),
    _vision(
        "EfficientNet", 32, image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, num_labels=5
    ),
    Model(
        "Segformer",
        "ForSemanticSegmentation",
        segments,
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 8,
            "num_labels": 5,
        },
    ),
    Model(
        "CLIP",
        "Model",
        pairs,
        {
            "projection_dim": 8,
            "text_config": {**DIMENSIONS, **_TOWER},
            "vision_config": {**_TOWER, "image_size": 16, "patch_size": 4},
        },
    ),
    Model(
        "Whisper",
        "ForConditionalGeneration",
        dictation,
        {
            "vocab_size": VOCABULARY,
            "num_mel_bins": 8,
            "d_model": 16,
            **DECODER,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    Model(
        "Wav2Vec2",
        "ForCTC",
        speech,
        {
            **DIMENSIONS,
            **SPEECH,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "mask_time_length": 2,
            "mask_time_prob": 0.2,
            "ctc_zero_infinity": True,
        },
    ),
    Model(
        "Hubert",
        "ForCTC",
        speech,
        {
            **DIMENSIONS,
            **SPEECH,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "mask_time_length": 2,
            "mask_time_prob": 0.2,
            "ctc_zero_infinity": True,
        },
    ),
]


# Most who pad their batches give the mask; without it a loss depends on the row of the padding too.
MODELS += [replace(each, mask=False) for each in MODELS if each.batch in (text, masked, sequences)]


def verified(model: Model) -> tuple[chainrule.Recording, Any]:
    """One step of it with AdamW, and its verification."""
    made = model.made()
    optimizer = torch.optim.AdamW(made.parameters())
    batch = model.batch()
    if not model.mask:
        del batch["attention_mask"]
    with chainrule.record() as recording:
        made(**batch).loss.backward()
        optimizer.step()
    return recording, recording.verify()


def alarms(recording: chainrule.Recording, verification: Any) -> list[str]:
    """What disagrees: nodes of the gradient check, and verdicts and cells of the walk and of the brief."""
    found = [f"{row.node.name}: {row.reason}" for row in verification.failures]
    for document in (recording.document(), recording.document(brief=True)):
        for _, section in document.walk():
            for block in section.blocks:
                if isinstance(block, Verdict) and block.kind == "disagrees":
                    found.append(str(block.text))
                if isinstance(block, Table):
                    found += [str(row) for row in block.rows if ("disagrees",) in row]
    return found


def main(arguments: list[str]) -> None:
    """Print one line a model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [each for each in arguments if not each.startswith("-")]
    chosen = [each for each in MODELS if not names or each.name in names or each.title in names]
    raised = 0
    for model in chosen:
        start = time.perf_counter()
        recording, verification = verified(model)
        taken = time.perf_counter() - start
        found = alarms(recording, verification)
        raised += len(found)
        count = Counter(row.verdict for row in verification.rows)
        words = ", ".join(f"{many} {verdict}" for verdict, many in count.most_common())
        for each in found:
            print(f"    ALARM {each}")
        print(f"{model.title:42} {taken:5.1f} s   {words}", flush=True)
        if "-v" in arguments:
            reasons = Counter(
                (row.verdict, row.node.name, row.reason) for row in verification.rows if row.verdict != "agrees"
            )
            for (verdict, node, reason), many in sorted(reasons.items()):
                print(f"    {many:4} {verdict}: {node}: {reason}")
    print(f"{len(chosen)} models, {raised} alarms")


if __name__ == "__main__":
    main(sys.argv[1:])
