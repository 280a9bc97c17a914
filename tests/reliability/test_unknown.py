"""What the recorder does not know passes as if it were not there, is said once, and is never fatal.

Operators that take functions, and every kind of tensor, each against the same step without us, bit for bit.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import DispatchKey, _AutoDispatchBelowAutograd
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.effects import with_effects
from torch._higher_order_ops.hints_wrap import hints_wrapper
from torch._ops import HigherOrderOperator
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

import chainrule
from tests.reliability.kinds_of_tensors import CASES, OWN_CODE, check, left_behind

WAYS = ("all", "statistics", "watch")
ROOT = Path(__file__).parents[2]
Loss = Callable[[Tensor], Tensor]

# -- operators that take functions -------------------------------------------------------------------------------------


class Twice(HigherOrderOperator):
    """An operator of nobody's that is known: it insists on running without a mode."""

    def __init__(self) -> None:
        super().__init__("chainrule_tests_twice")

    def __call__(self, function: Loss, x: Tensor) -> Tensor:
        return super().__call__(function, x)


twice = Twice()


@twice.py_impl(DispatchKey.CompositeExplicitAutograd)
def _run_twice(function: Loss, x: Tensor) -> Tensor:
    assert _get_current_dispatch_mode() is None
    return function(function(x))


class TwiceFunction(torch.autograd.Function):
    wrong = 1.0

    @staticmethod
    def forward(ctx: Any, function: Loss, x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        with _AutoDispatchBelowAutograd():
            return twice(function, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.function(ctx.function(x)), x, gradient)
        return None, found * TwiceFunction.wrong


@twice.py_autograd_impl
def _differentiate_twice(function: Loss, x: Tensor) -> Tensor:
    return TwiceFunction.apply(function, x)


def no_gradients(operator: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    with torch.no_grad():
        return operator(*arguments, **keywords)


@torch.library.custom_op("chainrule_tests::double", mutates_args={"x"})
def double(x: Tensor) -> None:
    x.mul_(2)


def selective(a: Tensor) -> Tensor:
    from functools import partial

    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
        saved = operation is torch.ops.aten.mul.Tensor
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(lambda x: (x * a).sin(), a * 2, use_reentrant=False, context_fn=contexts)


OPERATORS: dict[str, tuple[Loss, str]] = {
    "unknown": (lambda a: twice(lambda x: x.sin() * 2, a * 3), "TwiceFunction"),
    "unknown without gradients": (lambda a: a * no_gradients(twice, lambda x: x.sin() * 2, a), "aten.sin.default"),
    "nested": (
        lambda a: a * no_gradients(twice, lambda x: twice(lambda y: y.exp() / 4, x).sin(), a),
        "aten.exp.default",
    ),
    "cond": (
        lambda a: a * no_gradients(cond_op, a.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (a,)),
        "aten.sin.default",
    ),
    "hints": (lambda a: a * no_gradients(hints_wrapper, lambda x: x.exp(), (a,), {}, {}), "aten.exp.default"),
    "effects": (
        lambda a: (
            a * no_gradients(with_effects, torch.ops.prims._make_token(), torch.ops.aten.sin.default, a.detach())[1]
        ),
        "aten.sin.default",
    ),
    "functionalized": (
        lambda a: a * no_gradients(auto_functionalized, torch.ops.chainrule_tests.double.default, x=a.detach())[1],
        "chainrule_tests.double.default",
    ),
    "random": (
        lambda a: (
            a
            * no_gradients(torch.ops.higher_order.run_and_save_rng_state, torch.ops.aten.rand_like.default, a.detach())[
                1
            ]
        ),
        "aten.rand_like.default",
    ),
    "wrap": (lambda a: torch.ops.higher_order.wrap(lambda x: x.sin() * a, a * 1), "aten.sin.default"),
    "checkpoint": (lambda a: checkpoint(lambda x: (x * a).sin(), a * 2, use_reentrant=False), "aten.sin.default"),
    "selective checkpoint": (selective, "aten.sin.default"),
    "torch.func.grad": (lambda a: torch.func.grad(lambda x: (x.sin() * a).sum())(a * 1), "aten.sin.default"),
    "vmap": (lambda a: torch.func.vmap(lambda x: (x * a).sin())(a * 1), "aten.sin.default"),
}


def cond(a: Tensor) -> Tensor:
    return torch.cond(a.sum() > 0, lambda x: x.sin() * a, lambda x: x.cos(), (a * 1,))


def cond_in_cond(a: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * y, lambda y: y + 1, (x,)) * a

    return torch.cond(a.sum() > 0, inner, lambda x: x.cos(), (a * 1,))


def cond_of_modules(a: Tensor) -> Tensor:
    torch.manual_seed(1)
    branches = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    return torch.cond(a.sum() > 0, branches[0], branches[1], (a * 2,)) * a


def cond_in_compiled_code(a: Tensor) -> Tensor:
    return torch.compile(lambda x: x * cond(x), backend="eager")(a * 2)


def checkpointed_cond(a: Tensor) -> Tensor:
    return checkpoint(cond, a * 2, use_reentrant=False)


def scanned(a: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    def combine(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        following = carry * a + x
        return following, following.clone()

    return scan(combine, torch.zeros(2), torch.arange(1.0, 7.0).view(3, 2) * a)[1]


def scanned_associatively(a: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(lambda x, y: x * y, torch.arange(1.0, 7.0).view(3, 2) * a, 0, combine_mode="generic")


def looped(a: Tensor) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * a), (torch.tensor(0), a * 1))[1] * a


def mapped(a: Tensor) -> Tensor:
    from torch._higher_order_ops import map as mapping

    return mapping(lambda x, y: x * y, torch.arange(1.0, 7.0).view(3, 2) * a, a)


def attended(a: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.randn(1, 1, 16, 16)
    return no_gradients(flex_attention, q, q, q, score_mod=lambda score, b, h, i, j: score + (i - j)).sum() * a


def in_a_region(a: Tensor) -> Tensor:
    return torch.compiler.nested_compile_region(lambda x: x.sin() * a)(a * 1)


COMPILED: dict[Loss, str] = {  # PyTorch compiles what it hands to these
    cond: "CondAutogradOp",
    cond_in_cond: "CondAutogradOp",
    cond_of_modules: "CondAutogradOp",
    cond_in_compiled_code: "CondAutogradOp",
    checkpointed_cond: "CondAutogradOp",
    scanned: "ScanAutogradOp",
    scanned_associatively: "aten.cat.default",
    looped: "WhileLoopAutogradOp",
    mapped: "MapAutogradOp",
    attended: "aten._safe_softmax.default",
    in_a_region: "aten.sin.default",
}


def gradients(loss: Loss, way: str, folder: Path) -> tuple[list[Tensor], Any]:
    """Value and gradient in two steps, the first of them in the given way ("" for bare); and the recording."""
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([0.5, 2.0]))

    def around(watched: nn.Module) -> Any:
        if way == "watch":
            return chainrule.watch(watched, every=1, to=folder / "run.db")
        return chainrule.record(keep=way)

    def make() -> Any:
        return model, lambda: loss(model.a).sum()

    if not way:
        from contextlib import nullcontext

        return left_behind(make, lambda watched: nullcontext())
    return left_behind(make, around)


def compare(loss: Loss, made: str, folder: Path) -> Iterator[chainrule.Recording]:
    expected, _ = gradients(loss, "", folder)
    for way in WAYS:
        left, recording = gradients(loss, way, folder)
        assert all(map(torch.equal, left, expected)), way
        if way != "watch":
            assert made in [each.name for each in recording.graph.operations]
            verified = recording.verify()
            assert not verified.failures
            yield recording
            str(recording)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_that_takes_functions_runs_as_without_us_and_its_operations_are_recorded(
    name: str, tmp_path: Path
) -> None:
    for recording in compare(*OPERATORS[name], tmp_path):
        assert not recording.graph.notes


@pytest.mark.slow  # PyTorch imports and runs its compiler
@pytest.mark.parametrize("loss", COMPILED, ids=lambda loss: loss.__name__)
def test_so_does_one_that_pytorch_compiles(loss: Loss, tmp_path: Path) -> None:
    for recording in compare(loss, COMPILED[loss], tmp_path):
        assert len(recording.graph.backwards) == 1  # not those that PyTorch traces, to differentiate a branch


def test_a_wrong_backward_of_an_unknown_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.tensor([0.5, 2.0], requires_grad=True)
    assert chainrule.verify(lambda a: twice(lambda x: x.sin() * 2, a * 3), a).passed
    monkeypatch.setattr(TwiceFunction, "wrong", 2.0)
    found = chainrule.verify(lambda a: twice(lambda x: x.sin() * 2, a * 3), a)
    assert [each.node.name for each in found.failures] == ["TwiceFunctionBackward"]


class Square(torch.autograd.Function):
    """Its forward is several operations, and `vmap` runs it in a function of PyTorch's own."""

    generate_vmap_rule = True
    factor = 2.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (2 * x) ** 2 / 4

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Square.factor * ctx.saved_tensors[0] * gradient


def test_a_function_inside_vmap_is_checked_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert [each.verdict for each in chainrule.verify(torch.func.vmap(Square.apply), x).rows if not each.node.leaf]
    assert chainrule.verify(torch.func.vmap(Square.apply), x).passed
    monkeypatch.setattr(Square, "factor", 1.0)
    assert not chainrule.verify(torch.func.vmap(Square.apply), x).passed


class Squaring(torch.autograd.Function):
    factor = 1.0  # wrong: the derivative of x * x is 2 x

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.aten.mul.Tensor(x, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * gradient * Squaring.factor


def overridable(x: Tensor) -> Tensor:
    """To a function mode this is one torch function, and not the function that it applies."""
    if has_torch_function((x,)):
        return handle_torch_function(overridable, (x,), x)
    return Squaring.apply(x)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "disagrees"), (2.0, "agrees")])
def test_a_function_inside_a_torch_function_is_not_checked_against_one_operation(
    factor: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Squaring, "factor", factor)
    rows = chainrule.verify(overridable, torch.tensor([1.0, 2.0])).rows
    assert [each.verdict for each in rows if each.node.name == "SquaringBackward"] == [verdict]


def test_a_function_can_be_traced_inside_of_a_recording() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    a = torch.tensor([0.5, 2.0], requires_grad=True)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad((x.sin() * x).sum(), x)[0]

    with chainrule.record() as recording:
        traced = make_fx(gradient, tracing_mode="fake")(torch.ones(2, requires_grad=True))
        loss = traced(a * 1).sum()
        loss.backward()
    assert recording.loss == loss.item()
    assert not recording.verify().failures
    str(recording)


@pytest.mark.slow
def test_compiled_branches_do_not_hold_a_recording() -> None:
    a = torch.tensor([0.5, 2.0], requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        with chainrule.record() as recording:
            cond(a).sum().backward()
    held = weakref.ref(recording)
    del recording
    gc.collect()
    assert held() is None


# -- kinds of tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["all", "statistics"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_with_such_tensors_is_the_same_recorded_and_can_be_read(name: str, way: str) -> None:
    check(name, way)


def in_a_process(way: str, names: dict[str, Any]) -> None:
    """Cases in a process of their own, where a crash is seen."""
    paths = [str(ROOT), str(Path(chainrule.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.reliability.kinds_of_tensors", way, *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert (done.returncode, done.stdout.split()) == (0, list(names)), done.stderr[-3000:]


@pytest.mark.slow
def test_nor_does_a_class_of_tensors_with_code_of_its_own_crash() -> None:
    in_a_process("all,statistics", OWN_CODE)


@pytest.mark.slow
def test_the_same_watched() -> None:
    in_a_process("watch", {**OWN_CODE, **CASES})


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "refusing": "of the class Refusing, which runs code of its own",
        "fake": "of the class FakeTensor, which runs code of its own",
        "jagged": "of the class NestedTensor, which runs code of its own",
        "nested": "nested",
        "quantised": "quantised",
        "mkldnn": "in the layout _mkldnn",
        "meta": "on the device meta",
        "freed": "without memory, which was freed",
    }.items(),
)
def test_values_without_numbers_are_named_once(name: str, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        _, loss = {**CASES, **OWN_CODE}[name]()
        with chainrule.record() as recording:
            loss().backward()
    (note,) = recording.graph.notes
    assert kind in note
    assert " ".join(str(recording).split()).count(kind) == 1
    nameless = [each for each in recording.graph.values if each.data is None]
    assert note.startswith(f"{len(nameless)} value")
    assert f"`{nameless[0].name}`" in note


def test_a_step_of_plain_tensors_has_no_such_note() -> None:
    model = nn.Linear(3, 2)
    with chainrule.record() as recording:
        model(torch.ones(4, 3)).sum().backward()
    assert not recording.graph.notes


@pytest.mark.parametrize("size", [4, 40_000])
def test_a_gradient_of_zeros_without_memory_and_parts_of_it(size: int) -> None:
    """`sgn` passes back PyTorch's zero tensor, which `.grad` then is."""
    x, w = (torch.ones(size, requires_grad=True) for _ in range(2))
    with chainrule.record() as recording:
        torch.sgn(x).sum().backward()
        part = x.grad[: size // 2]
        (w[: size // 2] * part).sum().backward()
    assert x.grad._is_zerotensor()
    assert recording.verify().passed
