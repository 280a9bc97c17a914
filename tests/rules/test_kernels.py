"""Rules of kernels that run on other devices only, held against the same computation on the CPU, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import chainrule
from chainrule import document, rules
from chainrule.rules import Applied


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def agree(node: str, arguments: dict[str, Any], outs: tuple[Any, ...], differentiable: int = 1) -> None:
    """Hold the rule's gradients of random upstream gradients against autograd's through `outs`."""
    detached = {name: _detached(value) for name, value in arguments.items()}
    op = Applied(detached, tuple(_detached(out) for out in outs), node)
    rule = rules.for_node(node, op)
    assert rule is not None
    upstream = tuple(torch.randn_like(out) if place < differentiable else None for place, out in enumerate(outs))
    for name in rule.wrt:
        if arguments.get(name) is None:
            continue
        leaves = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
        expected = torch.autograd.grad(outs[:differentiable], leaves, upstream[:differentiable], retain_graph=True)
        found = rule.gradient(op, upstream, name)
        for mine, theirs in zip(found if isinstance(found, list) else [found], expected, strict=True):
            torch.testing.assert_close(rules.reduce_to_shape(mine, tuple(theirs.shape))[0], theirs, msg=name)


def _detached(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_detached(each) for each in tree]
    return tree.detach() if isinstance(tree, Tensor) else tree


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["Flash", "Cudnn", "Efficient"])
def test_attention(kernel: str, causal: bool) -> None:
    q, k, v = rand(2, 4, 3, 5), rand(2, 4, 3, 5), rand(2, 4, 3, 6)
    arguments = {"query": q, "key": k, "value": v, "attn_bias": None, "dropout_p": 0.0, "is_causal": causal}
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
    agree(f"ScaledDotProduct{kernel}AttentionBackward0", {**arguments, "scale": 0.3}, (out,))


def test_attention_with_an_added_bias() -> None:
    q, k, v, bias = rand(2, 4, 3, 5), rand(2, 4, 7, 5), rand(2, 4, 7, 5), rand(2, 1, 3, 7)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    arguments = {"query": q, "key": k, "value": v, "attn_bias": bias, "dropout_p": 0.0, "is_causal": False}
    agree("ScaledDotProductEfficientAttentionBackward0", {**arguments, "scale": None}, (out,))


def test_dropout_inside_a_kernel_has_no_rule() -> None:
    assert rules.for_node("ScaledDotProductFlashAttentionBackward0", Applied({"dropout_p": 0.1}, ())) is None


MODES = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("mode", "proj_size"), [*((mode, 0) for mode in MODES), ("LSTM", 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers(mode: str, proj_size: int, bidirectional: bool, packed: bool, bias: bool) -> None:
    how: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "dtype": torch.float64, "batch_first": True}
    if mode.startswith("RNN"):
        module: Any = torch.nn.RNN(4, 3, 2, nonlinearity=mode[4:].lower(), **how)
    else:
        module = getattr(torch.nn, mode)(4, 3, 2, **how, **({"proj_size": proj_size} if proj_size else {}))
    passes = 2 * (1 + bidirectional)
    x, h, c = rand(2, 5, 4), rand(passes, 2, proj_size or 3), rand(passes, 2, 3)
    batch_sizes: list[int] = []
    sequence: Any = x
    if packed:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 2]), batch_first=True)
        batch_sizes = sequence.batch_sizes.tolist()
        x = sequence.data.detach().requires_grad_()
        sequence = torch.nn.utils.rnn.PackedSequence(x, sequence.batch_sizes)
    out, last = module(sequence, (h, c) if mode == "LSTM" else h)
    out = out.data if packed else out
    hy, cy = last if mode == "LSTM" else (last, torch.empty(0))
    arguments = {
        "input": x,
        "weight": list(module.parameters()),
        "weight_stride0": len(list(module.parameters())) // passes,
        "hx": h,
        "cx": c if mode == "LSTM" else None,
        "mode": MODES[mode],
        "batch_first": True,
        "dropout": 0.0,
        "train": True,
        "bidirectional": bidirectional,
        "batch_sizes": batch_sizes,
    }
    agree("CudnnRnnBackward0", arguments, (out, hy, cy), differentiable=3 if mode == "LSTM" else 2)


def test_lstm_cell() -> None:
    a, b, c, input_bias, hidden_bias = rand(2, 12), rand(2, 12), rand(2, 3), rand(12), rand(12)
    i, f, g, o = (a + input_bias + b + hidden_bias).chunk(4, 1)
    cy = f.sigmoid() * c + i.sigmoid() * g.tanh()
    arguments = {"input_gates": a, "hidden_gates": b, "cx": c, "input_bias": input_bias, "hidden_bias": hidden_bias}
    agree("ThnnFusedLstmCellBackward0", arguments, (o.sigmoid() * cy.tanh(), cy), differentiable=2)


def test_gru_cell() -> None:
    a, b, h = rand(2, 9), rand(2, 9), rand(2, 3)
    r, z = (a[:, :3] + b[:, :3]).sigmoid(), (a[:, 3:6] + b[:, 3:6]).sigmoid()
    n = (a[:, 6:] + r * b[:, 6:]).tanh()
    arguments = {"input_gates": a, "hidden_gates": b, "hx": h, "input_bias": None, "hidden_bias": None}
    agree("ThnnFusedGruCellBackward0", arguments, ((1 - z) * n + z * h,))


@pytest.mark.parametrize("eps", [1e-3, None])
def test_rms_norm(eps: float | None) -> None:
    x, weight = rand(2, 3, 4), rand(4)
    out = F.rms_norm(x, (4,), weight, eps)
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + floor)
    arguments = {"input": x, "normalized_shape": [4], "weight": weight, "eps": eps}
    agree("FusedRmsNormBackward0", arguments, (out, rstd))


def tables(recording: chainrule.Recording) -> dict[str, list[Any]]:
    """The tables of gates and states, and of what comes back, by their columns."""
    found: dict[str, list[Any]] = {}
    for _, section in recording.document().walk():
        for block in section.blocks:
            if isinstance(block, document.Tensor) and block.label.endswith("each step"):
                data = torch.tensor(block.entries, dtype=torch.float64).reshape(block.shape)
                found.setdefault(" ".join(block.column_labels), []).append(data)
    return found


@pytest.mark.parametrize("both", [False, True])
def test_a_gru_of_single_operations_has_its_tables(both: bool) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.GRU(2, 3, bidirectional=both, batch_first=True, dtype=torch.float64), torch.randn(2, 4, 2)
    with chainrule.record() as recording:
        out, last = layer(x.double())
        (out.square().sum() + last.sum()).backward()
    found = tables(recording)
    states = torch.cat([each[..., 3].transpose(1, 2) for each in found["r z n h"]], -1)  # (sample, step, unit)
    assert torch.allclose(states, out.detach())
    sides = ("", "_reverse") if both else ("",)
    for side, back in zip(sides, found["dJ/dh dJ/da of r dJ/da of z dJ/da of n"], strict=True):
        of_bias = back[..., 1:].sum((0, 2)).T.reshape(-1)  # over samples and steps, gate after gate
        assert torch.allclose(of_bias, layer.get_parameter(f"bias_ih_l0{side}").grad)  # type: ignore[arg-type]


def test_an_rnn_and_an_lstm_of_single_operations_have_their_tables() -> None:
    for kind, columns in ((torch.nn.RNN, "h"), (torch.nn.LSTM, "i f g o c h")):
        layer, x = kind(2, 3, dtype=torch.float64), torch.randn(4, 1, 2, dtype=torch.float64)
        with chainrule.record() as recording:
            out, _ = layer(x)
            out.square().sum().backward()
        [states] = tables(recording)[columns]
        assert torch.allclose(states[0, :, :, -1].T, out.detach()[:, 0])


def test_a_hook_on_the_way_leaves_no_table_of_what_comes_back() -> None:
    layer = torch.nn.GRU(2, 3)
    with chainrule.record() as recording:
        out, _ = layer(torch.randn(4, 1, 2))
        out.register_hook(lambda g: 2 * g)
        out.square().sum().backward()
    assert list(tables(recording)) == ["r z n h"]
