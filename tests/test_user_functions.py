"""What a user wrote is checked wherever it runs: under vmap, in a checkpoint, with NumPy or random numbers, in place.

Each kind stands with a right backward, of which nothing is said, and a wrong one, which is found at its own node.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import chainrule


def function(forward: Callable[..., Any], backward: Callable[..., Any]) -> type[Function]:
    return type("Own", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def recorded(step: Callable[[], Any]) -> Any:
    with chainrule.record() as recording:
        step()
    return recording


def told(check: Any) -> list[tuple[str, str, str]]:
    return [(row.node.name, row.verdict, row.reason) for row in check.rows]


def own(check: Any) -> list[Any]:
    return [row for row in check.rows if row.node.function_class is not None]


def judged(check: Any, right: bool) -> None:
    """All rows of the user's own agree; or some disagree, and no other row does."""
    if right:
        assert check.passed, told(check)
        assert {row.verdict for row in own(check)} == {"agrees"}, [each for each in told(check) if each[1] != "agrees"]
    else:
        assert check.failures, told(check)
        assert all(row.node.function_class is not None for row in check.failures), told(check)


# -- transforms -------------------------------------------------------------------------------------------------------


def squared(factor: float, own_rule: bool) -> type[Function]:
    class Squared(Function):
        generate_vmap_rule = not own_rule

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return (2 * x) ** 2 / 4

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return factor * ctx.saved_tensors[0] * g

    if own_rule:
        Squared.vmap = staticmethod(lambda info, dims, x: (Squared.apply(x), dims[0]))  # type: ignore[method-assign]
    return Squared


@pytest.mark.parametrize("factor", [2.0, 1.0])
@pytest.mark.parametrize("own_rule", [False, True])
def test_under_vmap_the_whole_forward_is_run_again(factor: float, own_rule: bool) -> None:
    f = squared(factor, own_rule).apply
    x = torch.randn(2, 3)
    # Inside of `grad` no gradient flows through a node that remains, so that one is given a random gradient.
    mapped = [vmap(f, in_dims=1, out_dims=1), vmap(grad(lambda row: f(row).sum()))]
    if factor == 2:
        mapped += [vmap(vmap(f)), vmap(lambda row: f(row.exp()).sin()), jacrev(lambda x: f(x).sum(0))]
    for each in mapped:
        judged(chainrule.verify(each, x), factor == 2)


def test_a_mistake_under_vmap_is_named() -> None:
    check = chainrule.verify(vmap(squared(1.0, own_rule=False).apply), torch.randn(2, 3))
    assert {repair.kind for row in check.failures for repair in row.repairs} == {"factor"}


class Cosine(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / b.norm()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        gb = g * a / b.norm() - (a * b).sum() * b / b.norm() ** 3  # g is missing in the second term
        return g * b / b.norm(), gb


@pytest.mark.parametrize(
    ("mapped", "a", "b"),
    [
        (vmap(Cosine.apply), (2, 3), (2, 3)),
        (vmap(Cosine.apply, in_dims=(1, None)), (3, 2), (3,)),
        (vmap(vmap(Cosine.apply, in_dims=(0, None)), in_dims=1), (2, 4, 3), (3, 4)),
    ],
    ids=["rows", "columns and one vector", "twice"],
)
def test_a_mistake_under_vmap_is_named_with_its_line(mapped: Any, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check = chainrule.verify(mapped, torch.randn(a), torch.randn(b))
    ((repair,),) = [row.repairs for row in check.failures]
    assert repair.kind == "missing factor"
    assert repair.text.startswith("the upstream gradient is missing in `a * b` (test_user_functions.py:")
    assert repair.argument == "b"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_what_torchscript_differentiates_as_one_is_not_taken_for_one_of_its_operations() -> None:
    @torch.jit.script
    def gated(x, w):  # type: ignore[no-untyped-def]
        return (x * w).tanh() * torch.sigmoid(x * w)

    x, w = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    for _ in range(3):  # TorchScript joins operations from the second or third call on
        with chainrule.record() as recording:
            gated(x, w).square().mean().backward()
    check = recording.verify()
    joined = [row for row in check.rows if row.node.name == "DifferentiableGraphBackward"]
    assert [row.verdict for row in joined] == ["not checked"]
    assert "TorchScript differentiates several operations as one" in joined[0].reason
    assert not check.failures
    assert check.passed  # it is PyTorch's own
    assert "not checked" in str(check)


class Pinball(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.maximum(0.3 * x, -0.7 * x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.where(x > 0, 0.3, -0.7)  # which PyTorch makes float32


def test_a_backward_that_is_right_to_float32_alone_is_wrong_in_float64_and_named() -> None:
    assert chainrule.verify(Pinball.apply, torch.randn(4)).passed
    check = chainrule.verify(Pinball.apply, torch.randn(4, dtype=torch.float64))
    ((repair,),) = [row.repairs for row in check.failures]
    assert repair.kind == "number type"
    assert "rounded to float32" in repair.text


CONVOLUTION = """
import torch, torch.nn.functional as F, chainrule

class Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w, padding=1)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gx = torch.nn.grad.conv2d_input(x.shape, w, g, padding=1)
        return gx**3, torch.nn.grad.conv2d_weight(x, w.shape, g, padding=1)

check = chainrule.verify(Convolution.apply, torch.randn(2, 3, 16, 16), torch.randn(4, 3, 3, 3))
print(check.passed, *(repair.text for row in check.rows for repair in row.repairs))
"""


def test_a_search_for_a_mistake_gives_no_unchecked_kernel_other_operands(tmp_path: Path) -> None:
    """`convolution_backward` reads beyond its operands if their shapes do not fit, which ends the process."""
    script = tmp_path / "convolution.py"
    script.write_text(CONVOLUTION)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("False ")
    assert "pow" in run.stdout


# -- writes -----------------------------------------------------------------------------------------------------------


def in_place(g: Tensor) -> Tensor:
    return g.mul_(2)


def through_a_view(g: Tensor) -> Tensor:
    g.view(-1)[:] = 2 * g
    return g


def through_numpy(g: Tensor) -> Tensor:
    g.numpy()[...] *= 2
    return g.clone()


def cleared(g: Tensor) -> Tensor:
    twice = 2 * g
    g.zero_()
    return twice


WRITES = "its backward writes to the gradient that it is given"


@pytest.mark.parametrize("write", [in_place, through_a_view, through_numpy, cleared])
def test_a_backward_that_writes_to_its_upstream_is_judged_on_what_arrived(write: Callable[[Tensor], Tensor]) -> None:
    for wrong in (0.0, 0.5):
        f = function(lambda ctx, x: 2 * x, lambda ctx, g, wrong=wrong: write(g) + wrong)
        alone = chainrule.verify(f, torch.randn(3))
        judged(alone, not wrong)
        assert WRITES in own(alone)[0].reason
        for shared in ("exp", "leaf"):
            check = _shared(f, shared)
            assert [row.node.name for row in check.failures] == ["OwnBackward"], told(check)
            assert WRITES in check.failures[0].reason
            assert ("ExpBackward0" if shared == "exp" else "`a`") in check.failures[0].reason


def _shared(f: Any, shared: str) -> Any:
    a, b = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    with chainrule.record() as recording:
        other = b.exp() if shared == "exp" else a
        ((other + f.apply(a * 1.0)) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    return recording.verify()


def test_a_backward_that_writes_to_what_it_made_is_left_alone() -> None:
    def backward(ctx: Any, g: Tensor) -> Tensor:
        out = torch.zeros_like(g)
        out[:] = 2 * g
        return out.add_(0)

    check = _shared(function(lambda ctx, x: 2 * x, backward), "exp")
    judged(check, True)
    assert all(WRITES not in reason for *_, reason in told(check))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("marked", [True, False])
def test_an_input_that_is_overwritten_without_mark_dirty(marked: bool, view: bool) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x *= 2.0
        if marked:
            ctx.mark_dirty(x)
        return x

    f = function(forward, lambda ctx, g: 2 * g)
    for used_again in (False, True):
        w = nn.Parameter(torch.tensor([1.0, 2.0]))
        with chainrule.record() as recording:
            h = (1.5 * w).view(2, 1) if view else 1.5 * w
            z = f.apply(h)
            (z.sum() + (h.exp().sum() if used_again else 0)).backward()
        check = recording.verify()
        if marked and view:  # autograd has one node for the write and the view
            assert check.passed
            assert "CopySlices" in {row.node.name for row in check.rows if row.verdict == "agrees"}
        else:
            judged(check, marked or not used_again)
        if not marked and used_again:
            assert "without ctx.mark_dirty" in own(check)[0].reason


def test_a_write_to_a_part_is_measured() -> None:
    w = nn.Parameter(torch.randn(3, 4))
    with chainrule.record() as recording:
        h = w * 2
        h[:, 1] = h[:, 0] * 3
        h[0].mul_(2.0)
        h.square().sum().backward()
    check, graph = recording.verify(), recording.graph
    written = [row for row in check.rows if row.node.name == "CopySlices"]
    assert [row.verdict for row in written] == ["agrees", "agrees"], told(check)
    assert all(row.finite_difference is not None for row in written)
    for node in (row.node for row in written):
        wrong = chainrule.Recording.of(spoiled(graph, node)).verify()
        assert node.name in {row.node.name for row in wrong.failures}, told(wrong)


def spoiled(graph: Any, node: Any) -> Any:
    """The graph with a gradient of this node that is wrong by 1 % in one element."""
    (execution,) = node.executions
    first = execution.downstream[0]
    first = first.clone()
    first.view(-1)[-1] *= 1.01
    wrong = dataclasses.replace(execution, sent=(type(execution.sent[0]).of(first), *execution.sent[1:]))
    nodes = list(graph.nodes)
    nodes[node.index] = dataclasses.replace(node, executions=(wrong,))
    return dataclasses.replace(graph, nodes=tuple(nodes))


# -- second order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
def test_a_backward_that_is_differentiated_again(right: bool) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.e = x.exp()  # has no graph
        ctx.save_for_backward(x)
        return ctx.e.sin()  # type: ignore[no-any-return]

    def backward(ctx: Any, g: Tensor) -> Tensor:
        e = ctx.saved_tensors[0].exp() if right else ctx.e
        return g * e.cos() * e  # type: ignore[no-any-return]

    f = function(forward, backward)
    for again in (True, False):
        x = torch.randn(5, requires_grad=True)
        with chainrule.record() as recording:
            (g,) = torch.autograd.grad(f.apply(x * 1.0).square().sum(), x, create_graph=True)
            if again:
                g.square().sum().backward()
        check = recording.verify()
        judged(check, right or not again)
        if check.failures:
            assert "differentiated again" in check.failures[0].reason


# -- an upstream gradient of ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [False, True])
def test_a_backward_that_forgets_an_upstream_gradient_of_ones_is_wrong_in_any_other_step(loss: bool) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin().sum() if loss else x.sin()

    for right in (True, False):
        f = function(forward, lambda ctx, g, right=right: ctx.saved_tensors[0].cos() * (g if right else 1))
        w = torch.randn(4, requires_grad=True)
        check = recorded(lambda f=f, w=w: f.apply(1.0 * w).sum().backward()).verify()
        judged(check, right)
        if not right:
            assert "right in this step, where the upstream gradient is 1 throughout" in check.failures[0].reason
            assert [repair.kind for repair in check.failures[0].repairs] == ["missing factor"]


@pytest.mark.parametrize(
    ("weights", "where"),
    [([0.0] * 4, "0 throughout"), ([0.25] * 4, "0.25 throughout"), ([0.0, 2.0, 0.0, 2.0], "0 or 2")],
)
def test_a_backward_is_not_right_because_one_number_arrives(weights: list[float], where: str) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    for right in (True, False):
        f = function(
            forward, lambda ctx, g, right=right: ctx.saved_tensors[0].cos() * (g if right else torch.tensor(weights))
        )
        w = torch.randn(4, requires_grad=True)
        check = recorded(lambda f=f, w=w: (f.apply(1.0 * w) * torch.tensor(weights)).sum().backward()).verify()
        judged(check, right)
        if not right:
            assert f"right in this step, where the upstream gradient is {where}" in check.failures[0].reason


def test_a_backward_that_clips_what_arrives_is_left_alone_where_it_does_not_clip() -> None:
    clip = function(lambda ctx, x: x.clone(), lambda ctx, g: g.clamp(-1, 1))
    judged(recorded(lambda: clip.apply(1.0 * torch.randn(4, requires_grad=True)).sum().backward()).verify(), True)


# -- a checkpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(sign: float, reentrant: bool) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    f = function(forward, lambda ctx, g: sign * g * ctx.saved_tensors[0].cos())
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    with chainrule.record() as recording:
        y = checkpoint(lambda a: f.apply(layer(a)).exp(), x, use_reentrant=reentrant)
        (y * torch.randn(3, 4)).sum().backward()
    check = recording.verify()
    judged(check, sign == 1)
    assert [row.node.name for row in check.failures] == (["OwnBackward"] if sign == -1 else [])


# -- what cannot simply run in float64 --------------------------------------------------------------------------------


def dropout(ctx: Any, x: Tensor) -> Tensor:
    ctx.factor = (torch.rand_like(x) > 0.5).to(x) * 2
    return x * ctx.factor  # type: ignore[no-any-return]


def noise_in_place(ctx: Any, x: Tensor) -> Tensor:
    ctx.factor = torch.empty_like(x).normal_()
    return x * ctx.factor  # type: ignore[no-any-return]


def ends_in_numpy(ctx: Any, x: Tensor) -> Tensor:
    ctx.factor = torch.from_numpy(np.cos(x.detach().numpy()))
    return torch.from_numpy(np.sin(x.detach().numpy()))


def from_lists(ctx: Any, x: Tensor) -> Tensor:
    ctx.factor = x.cos()
    return torch.tensor([math.sin(each) for each in x.tolist()])


def float32_alone(ctx: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    ctx.factor = 3 * x * x
    return x**3


@pytest.mark.parametrize("forward", [dropout, noise_in_place, ends_in_numpy, from_lists, float32_alone])
@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_random_numbers_numpy_and_a_kernel_for_float32_alone(forward: Callable[..., Any], factor: float) -> None:
    f = function(forward, lambda ctx, g: factor * ctx.factor * g)
    judged(chainrule.verify(f, torch.tensor([0.3, 1.0, -0.5, 0.7, 1.3, -2.0])), factor == 1)
    if factor == 1 and forward is not from_lists:  # many elements are measured along directions
        judged(chainrule.verify(f, torch.randn(3000)), factor == 1)


def test_a_kernel_for_float32_alone_with_a_corner_is_no_alarm() -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        ctx.save_for_backward(x)
        return x.relu()

    x = torch.linspace(-1, 1, 200).float()  # some lie nearer to the corner than a step
    for threshold in (0.0, 0.5):
        f = function(forward, lambda ctx, g, threshold=threshold: g * (ctx.saved_tensors[0] > threshold))
        judged(chainrule.verify(f, x), threshold == 0)


@torch.library.custom_op("chainrule_tests::drop", mutates_args=())
def drop(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    mask = (torch.rand_like(x) > 0.5).to(x.dtype)
    return 2 * x * mask, mask * factor


drop.register_autograd(
    lambda ctx, g, h: (g * ctx.saved_tensors[0], None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[1]),
)


@torch.library.custom_op("chainrule_tests::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * (1 + x.exp()).log().tanh()


def wrong_gradient(ctx: Any, g: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    t = (1 + x.exp()).log().tanh()
    return g * (t + x * (1 - t) * x.sigmoid())


swish.register_autograd(wrong_gradient, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_mistake_of_a_custom_operator_is_named_as_that_of_a_function(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    (row,) = own(chainrule.verify(swish, x))
    assert [repair.kind for repair in row.repairs] == ["missing function"]
    assert "1 - t" in row.repairs[0].text


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_a_custom_operator_that_draws(factor: float) -> None:
    judged(chainrule.verify(lambda x: drop(x, factor)[0], torch.randn(6)), factor == 2)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_recording_may_outlive_the_interpreters_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, requires_grad=True)
    recording = recorded(lambda: x.sum().backward())
    monkeypatch.setattr("chainrule.recording.free", None)
    recording.__del__()


# -- where the forward stands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
def test_a_forward_that_runs_no_operation(right: bool) -> None:
    class Passed(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
            return x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return (g if right else g.flip(0)), None

    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    recording = recorded(lambda: (Passed.apply(2 * w, 0.5).exp()).sum().backward())
    assert recording.graph.operations[1].arguments["factor"] == 0.5
    judged(recording.verify(), right)


@pytest.mark.parametrize("right", [True, False])
def test_a_forward_that_applies_another_function(right: bool) -> None:
    class Inner(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.exp()

    class Outer(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = Inner.apply(x)
            ctx.save_for_backward(y)
            return 3 * y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return (3 if right else 1) * g * ctx.saved_tensors[0]

    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    recording = recorded(lambda: Outer.apply(2 * w).sum().backward())
    assert [op.name for op in recording.graph.operations] == ["aten.mul.Tensor", "Outer", "aten.sum.default"]
    judged(recording.verify(), right)
