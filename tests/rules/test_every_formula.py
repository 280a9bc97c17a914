r"""The printed LaTeX of every rule, evaluated from its text on every sample of the rule, and compared with PyTorch.

What is compared: the equation with the recorded output; each local derivative with the Jacobian that autograd gives,
entry by entry; each product with `torch.autograd.grad` for a random upstream gradient. The numbers on the other side
come from running the recorded operation again, never from the code of a rule. `latex_math.py` says what formulas mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import scipy.stats
import torch
from latex_math import Statement, differ
from latex_tree import FormulaError
from test_every_rule import WRONG_IN_PYTORCH, recorded, steps_of
from torch import Tensor
from torch.nn import functional as F

from chainrule import reference, rules
from chainrule.graph.trees import tensors_in
from chainrule.rules import Applied, Rule, reduce_to_shape

pytestmark = pytest.mark.usefixtures("quiet")

RULES = list(rules.registered())

# Outputs that are defined up to a phase: PyTorch refuses a derivative that depends on it, so theirs are not compared.
PHASES = {"linalg_eig": {1}}

# Formulas of single samples that are not evaluated, as (rule, note of the sample), and the formula ("" for all):
# - under any TorchDispatchMode, PyTorch 2.13 gives another pseudo-inverse of a complex matrix, so what is recorded is
#   wrong; the formulas hold for the right one;
# - the diagonal of a Cholesky factor is real, yet autograd has a derivative of its imaginary part;
# - blocks of a factor that is not square, and a permutation that is stored as a list of swaps, have no notation;
# - the product of reflections is written for one matrix, not for each of a batch.
EXCEPTIONS = [
    (("linalg_pinv", "complex"), ""),
    (("cholesky", "complex"), "local"),
    (("linalg_qr", "wide, batch"), "product"),
    *((("linalg_lu", note), "product") for note in ("tall", "wide, batch")),
    *((("linalg_lu_factor_ex", note), "") for note in ("tall", "wide")),
    *(((name, "batch"), "") for name in ("linalg_householder_product", "ormqr")),
]


# Rules of which some elements are left out, those where the formula gives no finite number, or PyTorch none.
AT_THE_ORIGIN = "the angle, the sign or the length has no derivative at the origin, as its kink says"
AT_A_LIMIT = "at such a point PyTorch takes the limit of the formula, which is 0/0 or 0 ln 0 there"
STEEP = "autograd multiplies the infinite slope by the zeros of the other elements"
WITHOUT_NUMBERS: dict[str, str] = {
    "pow": "the exponent 0, and the base 0: as its kink says",
    "sqrt": STEEP,
    "fmax": "NaN counts as missing, as its remark says",
    "fmin": "NaN counts as missing, as its remark says",
    "binary_cross_entropy": "PyTorch holds logarithms and denominators at 0 and 1 finite, as its kink says",
    "binary_cross_entropy_reduced": "PyTorch holds logarithms and denominators at 0 and 1 finite, as its kink says",
    "binary_cross_entropy_with_logits": "the sigmoid of a large logit is 1, and PyTorch never forms ln 0",
    "binary_cross_entropy_with_logits_reduced": "the sigmoid of a large logit is 1, and PyTorch never forms ln 0",
    "nll_loss_reduced": "where all targets are ignored, PyTorch gives the gradient 0 for 0/0",
    **dict.fromkeys(["cdist", "pdist"], "the distance 0 has a corner, as the remark says"),
    **dict.fromkeys(["angle", "sgn", "hypot", "atan2"], AT_THE_ORIGIN),
    **dict.fromkeys(["sinc", "copysign", "special_i1", "special_i1e", "xlogy", "special_xlog1py", "frexp"], AT_A_LIMIT),
}

# Numbers that a formula names and that are no argument: what was drawn, or is stored in another form.
DRAWN: dict[str, Callable[[Applied], dict[str, Tensor]]] = {
    "dropout": lambda op: {"M": op.outs[1]},
    "linalg_lu_solve": lambda op: {"P": torch.lu_unpack(op.LU, op.pivots)[0]},
    "rrelu": lambda op: {"r": torch.where(op.self == 0, (op.lower + op.upper) / 2, op.out / op.self)},
}


@dataclass(frozen=True)
class Use:
    """One recorded run of a rule's operation, which can run again."""

    rule: Rule
    op: Applied
    function: Callable[..., Any]
    random_state: Tensor | None
    strict: bool = False  # no element is left out

    @property
    def leaves_out(self) -> bool:
        """Whether elements without a number are left out (see WITHOUT_NUMBERS)."""
        return self.rule.name in WITHOUT_NUMBERS and not self.strict

    def run(self, arguments: Mapping[str, Any]) -> dict[int, Tensor]:
        """The outputs that want a gradient, on other arguments, by their places: one, or all if the rule has more."""
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
        with torch.enable_grad():
            outs = enumerate(tensors_in(self.function(**arguments)))
            found = {slot: full(out) for slot, out in outs if out.requires_grad}
        return found if self.rule.outputs > 1 else dict([*found.items()][:1])

    def leaf(self, argument: str) -> tuple[Any, list[Tensor]]:
        """The outputs, and the leaves that one argument was made: a single one, unless it is a list."""
        given = self.op.arguments[argument]
        leaves = [each.detach().clone().requires_grad_() for each in tensors_in([given])]
        moved = [each.clone() for each in leaves]  # an in-place operation may not write to a leaf
        rest = {name: _copied(each) for name, each in self.op.arguments.items()}
        return [*self.outputs({**rest, argument: moved if isinstance(given, list) else moved[0]}).values()], leaves

    def outputs(self, arguments: Mapping[str, Any]) -> dict[int, Tensor]:
        """The outputs that are compared: those that want a gradient, but for what is free (see PHASES)."""
        return {slot: out for slot, out in self.run(arguments).items() if slot not in PHASES.get(self.rule.name, ())}

    def differentiable(self, argument: str = "") -> list[int]:
        """The places of the outputs that want a gradient."""
        argument = argument or next(name for name in self.rule.wrt if tensors_in([self.op.arguments.get(name)]))
        given = {name: _copied(each) for name, each in self.op.arguments.items()}
        for each in tensors_in([given[argument]]):
            each.requires_grad_()
        return [*self.outputs({**given, argument: _copied(given[argument], kept=True)})]

    def symbols(self) -> dict[str, str]:
        """The names of the operands as docs/rules.md prints them."""
        symbols = reference._symbols(self.rule, self.op)
        return symbols if self.rule.outputs == 1 else {**symbols, "out": symbols["out0"], "g": symbols["g0"]}

    def called(self, argument: str, item: int) -> str:
        """The name of an argument, or of one of a list."""
        if not isinstance(self.op.arguments[argument], list):
            return "g" if argument == "g" else self.symbols()[argument]
        if self.rule.name == "recurrent_layers":
            return ("W_{ih}", "W_{hh}", "b_{ih}", "b_{hh}")[item]  # as its remark says
        return f"{self.symbols()[argument]}_{{{item}}}"

    def numbers(self) -> dict[str, Tensor]:
        """The tensors behind the names."""
        symbols, found = self.symbols(), {}
        for name, given in self.op.arguments.items():
            if isinstance(given, Tensor):
                found["g" if name == "g" else symbols[name]] = given
            elif isinstance(given, list):
                items = ((place, each) for place, each in enumerate(given) if isinstance(each, Tensor))
                found |= {self.called(name, place): each for place, each in items}
        for slot, out in enumerate(self.op.outs):
            if isinstance(out, Tensor) and (slot or self.rule.outputs > 1):  # else y_0 is an element
                found[f"{reference.SYMBOLS['out']}_{{{slot}}}"] = out
        return found | {symbols["out"]: self.op.out} | DRAWN.get(self.rule.name, lambda op: {})(self.op)

    def elements(self) -> dict[str, Any]:
        """How the operands are read, element by element: all broadcast, or with an axis of classes."""
        rule = self.rule
        base = next((each for each in RULES if f"{each.name}_reduced" == rule.name), rule)
        if base.name in ("nll_loss", "nll_loss_backward", "cross_entropy", "multi_margin_loss"):
            shape = torch.atleast_1d(self.op.arguments["input" if base.name == "cross_entropy" else "self"]).shape
            return {"elementwise": shape, "classes": min(len(shape) - 1, 1)}
        if base.structure != "elementwise":
            return {}
        given = (each.shape for each in self.op.arguments.values() if isinstance(each, Tensor))
        return {"elementwise": self.op.out.shape if base is rule else torch.broadcast_shapes(*given)}

    def statement(self, template: Any, more: Mapping[str, Tensor] | None = None, **symbols: str) -> Statement:
        """One of the rule's formulas, as it prints, with the numbers behind it."""
        names = {**self.symbols(), **symbols}
        parts = [self.rule.latex(each, self.op, names) for each in (template, self.rule.where)]
        text = r" \quad ".join(filter(None, parts))
        given = {**self.numbers(), **(more or {})}
        return Statement(text, given, **self.elements(), subject=symbols.get("grad", ""))

    def differ(self, theirs: Tensor, mine: Tensor) -> str:
        """How a formula differs from PyTorch."""
        if self.leaves_out and theirs.shape == mine.shape:
            there = theirs.isfinite() & mine.isfinite()
            theirs, mine = theirs[there], mine[there]
        return differ(theirs, mine, self.tolerance)

    @property
    def tolerance(self) -> float:
        """How far rounding may go: printed numbers have six digits."""
        single = any(each.dtype == torch.float32 for each in tensors_in(list(self.op.arguments.values())))
        return 1e-3 if single else 1e-5


def full(tensor: Tensor) -> Tensor:
    """A tensor with all its elements, where only some are stored."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _copied(given: Any, kept: bool = False) -> Any:
    """The same tensors anew; with `kept` they are computed from the others, so that they may be written to."""
    if isinstance(given, list):
        return [_copied(each, kept) for each in given]
    return (given if kept else given.detach()).clone() if isinstance(given, Tensor) else given


def _normed(input: Tensor, normalized_shape: list[int], weight: Tensor, eps: float | None) -> Tensor:
    return F.rms_norm(input, normalized_shape, weight, eps)


def _attended(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, **how: Any) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_bias, **how)


def _rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _kernel(causal: bool, bias: Tensor | None = None) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = {"query": _rand(2, 2, 3, 5), "key": _rand(2, 2, 4, 5), "value": _rand(2, 2, 4, 2), "attn_bias": bias}
    return _attended, {**given, "dropout_p": 0.0, "is_causal": causal, "scale": None if causal else 0.3}


def _layers(module: type, parts: int, biased: bool, **how: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """cuDNN's kernel with one layer in one direction, and how PyTorch's own layer computes the same."""
    sizes = ((parts * 3, 4), (parts * 3, 3), (parts * 3,), (parts * 3,))[: 4 if biased else 2]
    mode = {"LSTM": 2, "GRU": 3}.get(module.__name__, int(how.get("nonlinearity") == "tanh"))

    def run(input: Tensor, weight: list[Tensor], hx: Tensor, cx: Tensor | None, **rest: Any) -> Any:
        layer = module(4, 3, bias=biased, dtype=torch.float64, **how)
        given = dict(zip([name for name, _ in layer.named_parameters()], weight, strict=True))
        out, last = torch.func.functional_call(layer, given, (input, (hx, cx) if mode == 2 else hx))
        return out, *(last if mode == 2 else (last,))

    state = {"hx": _rand(1, 2, 3), "cx": _rand(1, 2, 3) if mode == 2 else None, "mode": mode}
    weight = [_rand(*size) for size in sizes]
    more = {"weight_stride0": len(weight), "batch_sizes": [], "batch_first": False}
    return run, {"input": _rand(3, 2, 4), "weight": weight, **state, **more}


def _lstm_cell(input_gates: Any, hidden_gates: Any, cx: Any, input_bias: Any, hidden_bias: Any) -> Any:
    gates = input_gates + hidden_gates if input_bias is None else input_gates + input_bias + hidden_gates + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(input_gates: Any, hidden_gates: Any, hx: Any, input_bias: Any, hidden_bias: Any) -> Any:
    a, b = (input_gates, hidden_gates) if input_bias is None else (input_gates + input_bias, hidden_gates + hidden_bias)
    r, z = ((a[:, part] + b[:, part]).sigmoid() for part in (slice(0, 3), slice(3, 6)))
    n = (a[:, 6:] + r * b[:, 6:]).tanh()
    return (1 - z) * n + z * hx


def _cell(function: Callable[..., Any], gates: int, state: str) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    return [
        (function, {
            "input_gates": _rand(2, gates), "hidden_gates": _rand(2, gates), state: _rand(2, 3),
            "input_bias": _rand(gates) if biased else None, "hidden_bias": _rand(gates) if biased else None,
        })
        for biased in (True, False)
    ]  # fmt: skip


# Kernels of other devices: the same computation, with their arguments.
ELSEWHERE: dict[str, Callable[[], list[tuple[Callable[..., Any], dict[str, Any]]]]] = {
    "rms_norm": lambda: [
        (_normed, {"input": _rand(2, 3, 4), "normalized_shape": shape, "weight": weight, "eps": eps})
        for shape, weight, eps in (([4], _rand(4), 1e-3), ([3, 4], _rand(3, 4), None), ([4], None, None))
    ],
    "flash_attention": lambda: [_kernel(False), _kernel(True)],
    "thnn_fused_lstm_cell": lambda: _cell(_lstm_cell, 12, "cx"),
    "thnn_fused_gru_cell": lambda: _cell(_gru_cell, 9, "hx"),
    "recurrent_layers": lambda: [
        _layers(module, parts, biased, **how)
        for module, parts, how in (
            (torch.nn.LSTM, 4, {}),
            (torch.nn.GRU, 3, {}),
            (torch.nn.RNN, 1, {"nonlinearity": "relu"}),
            (torch.nn.RNN, 1, {"nonlinearity": "tanh"}),
        )
        for biased in (True, False)
    ],
    "efficient_attention": lambda: [_kernel(False), _kernel(True), _kernel(False, _rand(2, 1, 3, 4))],
}


def uses(rule: Rule) -> Iterator[tuple[str, Use]]:
    """Every run of a rule's operation in its samples, with the sample's name."""
    for place, (function, arguments) in enumerate(ELSEWHERE.get(rule.name, list)()):
        outs = function(**arguments)
        op = Applied(arguments, outs if isinstance(outs, tuple) else (outs,), rule.name)
        yield f"by hand {place}", Use(rule, op, function, None)
    for place, sample in enumerate(rule.samples()):
        recording = recorded(sample, torch.float64) or recorded(sample, torch.float32)
        for step in [] if recording is None else steps_of(rule, recording):
            if step.op is None:
                continue
            function, state = _function(rule, step, recording.graph)
            yield f"sample {place} {sample.note}".strip(), Use(rule, step.op, function, state)


def _function(rule: Rule, step: Any, graph: Any) -> tuple[Callable[..., Any], Tensor | None]:
    if getattr(step, "operation", None) is not None:
        operation = graph.operations[step.operation]
        return operation.function.function, operation.random_state
    called = getattr(F, rule.calls[0])
    return lambda **given: called(**{name: each for name, each in given.items() if each is not None}), None


def wrong_equation(use: Use) -> str:
    """Why a rule's equation does not give the recorded output."""
    if r"\sim" in use.rule.latex(use.rule.equation, use.op, use.symbols()):
        return wrong_distribution(use)
    statement, symbols = use.statement(use.rule.equation), use.symbols()
    slots = [slot for slot in use.differentiable() if use.op.outs[slot].numel()]
    names = ["out"] if use.rule.outputs == 1 else [f"out{slot}" for slot in slots]
    wrong = (statement.wrong_equation(symbols[name], use.tolerance, finite=use.leaves_out) for name in names)
    return next(filter(None, wrong), "")


# What the distributions in formulas mean, by scipy.
DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    r"\operatorname{Bernoulli}": scipy.stats.bernoulli,
    r"\mathcal{N}": lambda mean, variance: scipy.stats.norm(mean, variance**0.5),
    r"\operatorname{Poisson}": scipy.stats.poisson,
    r"\mathcal{U}": lambda low, high: scipy.stats.uniform(low, high - low),
    r"\mathcal{U}\{": lambda low, high: scipy.stats.randint(low, high + 1),
    r"\operatorname{Exponential}": lambda rate: scipy.stats.expon(scale=1 / rate),
    r"\operatorname{Cauchy}": scipy.stats.cauchy,
    r"\operatorname{Geometric}": scipy.stats.geom,
    r"\operatorname{LogNormal}": lambda mean, variance: scipy.stats.lognorm(variance**0.5, scale=mean.exp()),
}
DRAWS = 20_000


def wrong_distribution(use: Use) -> str:
    """Why many draws do not follow the distribution that an equation names: their shares below some bounds."""
    _, _, formula = use.rule.latex(use.rule.equation, use.op, use.symbols()).partition(r" \sim ")
    name, inside = re.fullmatch(r"(\\\w+\{\w+\}(?:\\\{)?)\(?(.*?)(?:\)|\\\})", formula).groups()  # type: ignore[union-attr]
    numbers = [
        Statement(each, use.numbers(), elementwise=use.op.out.shape).value()
        for each in inside.split(", ")
        if each != r"\dots"
    ]
    known = DISTRIBUTIONS[name](*numbers)
    given = {
        name: each.detach().expand(DRAWS, *each.shape).clone() if isinstance(each, Tensor) else each
        for name, each in use.op.arguments.items()
    }
    drawn = use.function(**given).double()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        bound = torch.as_tensor(known.ppf(share)) + 1e-9
        expected, found = torch.as_tensor(known.cdf(bound)), (drawn <= bound).double().mean(0)
        if bool(((found - expected).abs() > 4 / DRAWS**0.5).any()):
            return f"{formula}: {found} of the draws lie below {bound}, not {expected}"
    return ""


def wirtinger(outs: list[Tensor], slot: int, leaf: Tensor) -> tuple[Tensor, Tensor]:
    r"""d out / d leaf and d out / d \bar{leaf}, as [*out, *leaf]: row by row, by autograd.

    The other outputs get zeros: PyTorch's group norm takes a missing gradient of its output for one of them all.
    """
    out, zeros = outs[slot], [torch.zeros_like(each) for each in outs]

    def rows(factor: complex) -> Tensor:
        found = []
        for place in range(out.numel()):
            unit = torch.zeros_like(out).flatten()
            unit[place] = factor
            given = [*zeros[:slot], unit.reshape(out.shape), *zeros[slot + 1 :]]
            row = torch.autograd.grad(outs, leaf, given, retain_graph=True, allow_unused=True)[0]
            found.append(torch.zeros_like(full(leaf)) if row is None else full(row))
        return (
            torch.stack(found).reshape((*out.shape, *leaf.shape)) if found else leaf.new_zeros(*out.shape, *leaf.shape)
        )

    if not out.is_complex():
        return rows(1.0), torch.zeros(())
    ones, units = rows(1.0), rows(1j)
    if not leaf.is_complex():
        return torch.complex(ones, units), torch.zeros(())
    return (ones - 1j * units).conj() / 2, (ones + 1j * units) / 2


def wrong_local(use: Use, argument: str) -> str:
    """Why a rule's local derivative is not the Jacobian."""
    outs, leaves = use.leaf(argument)
    symbols = use.symbols()
    if use.rule.latex(use.rule.wrt[argument].local, use.op, symbols).lstrip("{").startswith(r"\dot{"):
        return wrong_differential(use, argument)
    statement = use.statement(use.rule.wrt[argument].local)
    for item, leaf in enumerate(leaves):
        into = use.called(argument, item)
        for place, (slot, out) in enumerate(zip(use.differentiable(argument), outs, strict=True)):
            name = symbols["out"] if use.rule.outputs == 1 else symbols[f"out{slot}"]
            for conjugate, theirs in enumerate(wirtinger(outs, place, leaf)):
                if conjugate and not (out.is_complex() and leaf.is_complex()):
                    continue
                difference = use.differ(theirs, statement.jacobian(name, into, bool(conjugate)))
                if difference:
                    return f"d {name} / d {into}{' conjugated' * conjugate}: {difference}"
    return ""


def wrong_differential(use: Use, argument: str) -> str:
    r"""Why `\dot{y} = ...` is not the Jacobian times a random direction `\dot{x}`."""
    outs, leaves = use.leaf(argument)
    symbols, generator = use.symbols(), torch.Generator().manual_seed(4)
    moved: dict[str, Tensor] = {}
    changes: list[Tensor] = [torch.zeros_like(out) for out in outs]
    for item, leaf in enumerate(leaves):
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        into = use.called(argument, item)
        moved[rf"\dot{{{into}}}"] = direction
        for slot in range(len(outs)):
            plain, conjugate = wirtinger(outs, slot, leaf)
            if leaf.is_complex() and not outs[slot].is_complex():  # autograd has the conjugate of twice the derivative
                plain, conjugate = plain.conj() / 2, plain / 2
            change = torch.tensordot(plain, direction.to(plain.dtype), leaf.dim())
            if conjugate.dim():
                change = change + torch.tensordot(conjugate, direction.conj(), leaf.dim())
            changes[slot] = changes[slot] + change
    slots = use.differentiable(argument)
    names = [symbols["out"]] if use.rule.outputs == 1 else [symbols[f"out{slot}"] for slot in slots]
    moved |= {rf"\dot{{{name}}}": change for name, change in zip(names, changes, strict=True)}
    statement = use.statement(use.rule.wrt[argument].local, moved)
    names = [name for name, out in zip(names, outs, strict=True) if out.numel()]
    wrong = (statement.wrong_equation(rf"\dot{{{name}}}", use.tolerance, finite=use.leaves_out) for name in names)
    return next(filter(None, wrong), "")


def wrong_product(use: Use, argument: str) -> str:
    """Why a rule's product is not what autograd gives for a random upstream gradient."""
    outs, leaves = use.leaf(argument)
    generator, symbols = torch.Generator().manual_seed(3), use.symbols()
    upstream = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
    names = [symbols["g"]] if use.rule.outputs == 1 else [symbols[f"g{slot}"] for slot in use.differentiable(argument)]
    theirs = torch.autograd.grad(outs, leaves, upstream, allow_unused=True)
    given = dict(zip(names, upstream, strict=True))
    if use.rule.name in PHASES:
        given |= {symbols[f"g{slot}"]: torch.zeros_like(use.op.outs[slot]) for slot in PHASES[use.rule.name]}
    for item, (leaf, their) in enumerate(zip(leaves, theirs, strict=True)):
        into = use.called(argument, item)
        bar = rf"\bar{{{into}}}"
        others = {f"grad{place}": rf"\bar{{{use.called(argument, place)}}}" for place in range(len(leaves))}
        statement = use.statement(use.rule.wrt[argument].product, given, grad=bar, **others)
        mine = statement.gradient(leaf.shape)
        expected = torch.zeros_like(full(leaf)) if their is None else full(their)
        if mine.is_complex() and not expected.is_complex():
            mine = mine.real
        if mine.shape != expected.shape:  # an argument that was broadcast: the walk sums
            mine, _ = reduce_to_shape(mine.expand(outs[0].shape), tuple(expected.shape))
        difference = use.differ(expected, mine)
        if difference:
            return difference
    return ""


def mistakes(rule: Rule, changed: Rule | None = None) -> Iterator[str]:
    """All that is wrong with the formulas of a rule, or with those of a changed one, over all samples of the rule."""
    asked = False
    whole: dict[str, bool] = {}  # whether a formula holds for all elements of some sample, where others leave some out
    for where, use in uses(rule):
        use, asked = replace(use, rule=changed or rule), True
        checks: list[tuple[str, Callable[..., str], tuple[Any, ...]]] = [("equation", wrong_equation, (use,))]
        for argument in rule.wrt.keys() - WRONG_IN_PYTORCH.get(rule.name, set()):
            if argument in ("weight2", "weight3") and not use.op.arguments.get("has_biases", True):
                continue  # PyTorch passes another tensor there, reads nothing of it, and fails to give it a gradient
            if any(
                each.is_floating_point() or each.is_complex() for each in tensors_in([use.op.arguments.get(argument)])
            ):
                checks += [(f"{argument}, local", wrong_local, (use, argument))]
                checks += [(f"{argument}, product", wrong_product, (use, argument))]
        exceptions = {part for (name, note), part in EXCEPTIONS if name == rule.name and where.endswith(note)}
        for what, check, arguments in checks:
            if any(what.endswith(part) for part in exceptions):
                continue
            try:
                wrong = check(*arguments)
            except (FormulaError, RuntimeError, IndexError) as error:  # shapes that do not fit are the formula's fault
                wrong = str(error)
            if wrong:
                yield f"{where}: {what}: {wrong}"
            elif use.leaves_out and use.op.out.numel():
                whole[what] = whole.get(what, False) or not check(replace(use, strict=True), *arguments[1:])
    yield from (f"{what}: in every sample some elements are left out" for what, held in whole.items() if not held)
    if not asked:
        yield "no sample runs the operation"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_formulas_of_a_rule(rule: Rule) -> None:
    found = list(mistakes(rule))
    assert not found, "\n".join(found)


def test_a_formula_without_any_number_is_wrong() -> None:
    rule = next(rule for rule in RULES if rule.name == "sqrt")
    nothing = replace(rule, wrt={"self": replace(rule.wrt["self"], local=r"\frac{0}{0}")})
    assert list(mistakes(rule, nothing)) == ["self, local: in every sample some elements are left out"]


@pytest.mark.parametrize("name", WITHOUT_NUMBERS)
def test_elements_without_numbers_are_left_out_for_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(WITHOUT_NUMBERS, name)
    assert list(mistakes(next(rule for rule in RULES if rule.name == name))), f"take {name} off the list"
