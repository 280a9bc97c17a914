"""What an operation means: its equation, its local derivatives, and its vector-Jacobian products.

One rule is one block, in the topic file where it belongs, and holds all that is known of the operation; registering it
is enough. LaTeX is written as a template: `$self`, `$out`, `$g` stand for the symbols of the argument `self`, of the
output, and of the upstream gradient. The code of a VJP is plain tensor code of our own, which never calls autograd, so
that walking back with the rules is a second backpropagation beside PyTorch's.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from string import Template
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from chainrule import plugins
from chainrule.errors import RuleError
from chainrule.gc_control import gc_paused
from chainrule.rules.element import Element, Elements, broadcast_index
from chainrule.rules.element import Index as Index
from chainrule.rules.expression import Expression, meanings, of, stated, times_upstream, without_brackets
from chainrule.rules.expression import number as number
from chainrule.rules.facts import Facts as Facts
from chainrule.rules.facts import register_facts
from chainrule.rules.pattern import Pattern, aligned, real

NO_TOPICS = {"optimizers", "pytorch_formulas"}  # modules without rules, left out since they take time

Answer = TypeVar("Answer")
Latex = str | Callable[[Any], str]
"""LaTeX in which `$self` stands for a symbol, or what makes it from the operation."""
Nondifferentiable = Literal["zero", "not differentiable", "no rule yet"]


class Applied:
    """An operation applied to recorded data: what a rule computes with.

    Arguments stand under the names of the operation's schema (`op.self`, `op.mat1`, `op.dim`; defaults filled in),
    tensors as detached data, Python numbers as they were passed. `op.out` is the (first) output, `op.outs` are all.
    """

    def __init__(self, arguments: Mapping[str, Any], outs: tuple[Any, ...], name: str = "") -> None:
        self.arguments = dict(arguments)
        self.outs = outs
        self.name = name
        self._known: dict[object, Any] = {}

    def once(self, question: Callable[..., Answer], *details: Any) -> Answer:
        """The answer to a question about this operation, which is asked once and not again for each element."""
        key = (question, *details)
        if key not in self._known:
            self._known[key] = question(self, *details)
        known: Answer = self._known[key]
        return known

    @property
    def has_numbers(self) -> bool:
        """Whether its tensors have numbers; where only statistics were kept, they have shapes alone."""
        tensors = (each for each in (*self.outs, *self.arguments.values()) if isinstance(each, Tensor))
        return not any(each.is_meta for each in tensors)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["arguments"][name]
        except KeyError:
            raise AttributeError(f"{self.name or 'operation'} has no argument {name!r}") from None

    @property
    def out(self) -> Any:
        """The (first) output."""
        return self.outs[0]


@dataclass(frozen=True)
class Factor:
    """The local derivative of one output element by one input element, as a reader would name it.

    Either an element of an operand (`argument="mat2", index=(0, 1)`), or a formula in LaTeX (`latex="1/m"`).
    `scale` multiplies it (`-1` for the second operand of a subtraction).
    """

    argument: str | None = None
    index: tuple[int, ...] = ()
    latex: str = ""
    scale: float = 1.0


Entry = Callable[[Any, Index, Index], Factor | None]
Upstream = Any  # a Tensor; a tuple of Tensor | None for rules with several outputs


@dataclass(frozen=True)
class Wrt:
    """All that is known of the derivative with respect to one argument.

    `vjp(op, g)` gives g^T (d out / d argument) in plain tensor code: in the argument's shape, or in the shape of the
    output where the operation broadcast it (the walk then sums, as a step of its own). For an argument that is a list
    of tensors it gives a list. `local` and `product` (what PyTorch runs) are LaTeX templates: a bare expression, or a
    statement with its own left side, `derivative(...)` or an element of `$grad`, the argument's gradient. `zeros`
    says why most of the Jacobian is zero, in words.
    `factor(op, out_index, in_index)` names one Jacobian entry that need not be zero (None: no closed name).
    `pattern(op)` says where the Jacobian can differ from zero, from the sizes alone (None: not known).
    """

    vjp: Callable[[Any, Upstream], Any]
    local: Latex
    product: Latex
    zeros: str | Callable[[Any], str] = ""
    factor: Entry | None = None
    pattern: Callable[[Any], Pattern | None] | None = None

    def why_zero(self, op: Any) -> str:
        """Why most of the Jacobian of an operation is zero."""
        return self.zeros(op) if callable(self.zeros) else self.zeros


def unread(argument: str) -> Wrt:
    """The derivative with respect to an argument of which only the shape is read."""
    return Wrt(lambda op, g: torch.zeros_like(op.arguments[argument]), "0", "0", "only its shape is read")


@dataclass(frozen=True)
class Convention:
    """Elements at which PyTorch's gradient is by definition not the derivative, and what PyTorch takes there.

    `where(op, radius)` marks the elements of `argument` to which it applies. `source` names the function whose
    documentation states it, where it is not the source of the rule.
    """

    where: Callable[[Any, float], Tensor]
    choice: str
    argument: str = "self"
    source: str = ""


class Kink(Convention):
    """Points where the derivative does not exist: `where` marks what lies within `radius` of such a point."""


@dataclass(frozen=True)
class Sample:
    """One input on which a rule is tried: `function(*arguments, **keywords)` must run the rule's operation."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def sample(function: Callable[..., Any], *arguments: Any, note: str = "", **keywords: Any) -> Sample:
    """A `Sample`, written as the call that it makes."""
    return Sample(function, arguments, keywords, note)


@dataclass(frozen=True)
class Stage:
    """One of several operations in a row that one operation amounts to (a loss: one term a sample, then their mean).

    `remark` says what it does to the numbers of the stage before, where its formula alone does not.
    """

    rule: Rule
    op: Applied
    symbol: str  # LaTeX of this stage's output; "" for the last one, which keeps the operation's own
    remark: str = ""


@dataclass(frozen=True)
class Working:
    """Numbers that a formula names and that no recorded tensor has: a table with names of its rows and columns.

    Of more than two axes the last two are a table; `label` says what those before are.
    """

    symbol: str
    label: str
    data: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Rule:
    """One operation (or one family of overloads of it), all in one block.

    `nodes` are the autograd nodes it answers to (`MulBackward0` without the number; see `rule` for operators that are
    not PyTorch's), `calls` the torch functions of several nodes that it explains as one (`linear`). `where` defines the
    names that its formulas share. `wrt` maps argument names to their derivatives; `constants` says for the other tensor
    arguments why there is none. `source` cites the formula. `conventions` are those beside the `kink`. `remark` is what
    a reader should know. A rule that is not `ours` is tested by nobody here, so that its agreement alone proves
    nothing.

    `element(op, slot, index)` is the formula of one element of a result, where it does not follow: a formula of
    elements does, and so does the sum of an operation that is linear in all its arguments, or in those that `linear`
    names together (the input and the bias of a convolution). `workings(op)` are the numbers that its formulas name on
    the way, `workings_back(op, upstream)` those of the way back, and `remark_back` defines what the latter are called.
    """

    name: str
    nodes: tuple[str, ...]
    equation: Latex
    wrt: Mapping[str, Wrt]
    source: str
    samples: Callable[[], Iterable[Sample]]
    where: Latex = ""
    calls: tuple[str, ...] = ()
    constants: Mapping[str, Nondifferentiable] = field(default_factory=dict)
    structure: Literal["elementwise", "linear", "dense"] = "dense"
    kink: Kink | None = None
    conventions: tuple[Convention, ...] = ()
    outputs: int = 1
    stages: Callable[[Any], list[Stage]] | None = None
    linear: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    element: Callable[[Elements, int, Index], Element | None] | None = None
    accepts: Callable[[Any], bool] = lambda op: True
    remark: str = ""
    workings: Callable[[Any], Iterable[Working]] | None = None
    workings_back: Callable[[Any, tuple[Tensor | None, ...]], Iterable[Working]] | None = None
    remark_back: str = ""
    topic: str = ""
    ours: bool = True

    def latex(self, template: Latex, op: Applied, symbols: Mapping[str, str]) -> str:
        """Fill the operands' symbols into one of this rule's templates; unknown names stay as they are."""
        scalars = {name: number(value) for name, value in op.arguments.items() if isinstance(value, (int, float))}
        known = {**_items(op, symbols), **scalars, **symbols}
        return Template(without_brackets(_text(template, op), known)).safe_substitute(known)

    def is_constant(self, op: Applied) -> bool:
        """Whether it is piecewise constant, as `sign` and `round` are: every derivative is 0."""
        derivatives = self.wrt.values() if self.structure == "elementwise" else ()
        return bool(derivatives) and all(self.latex(each.local, op, {}) == "0" for each in derivatives)

    def linear_in(self, op: Applied) -> tuple[str, ...]:
        """The arguments in which it is linear, all together."""
        named = self.linear(op) if callable(self.linear) else self.linear
        return named or (tuple(self.wrt) if self.structure == "linear" else ())

    def gradient(self, op: Applied, upstream: tuple[Tensor | None, ...], argument: str) -> Any:
        """The VJP with respect to `argument`; a rule with one output takes its gradient, any other the tuple.

        What the operation was not asked for (the weight's gradient, where that of a convolution's input alone was) may
        be missing at the end of `upstream`, and is as if nothing arrived there.
        """
        if self.outputs > 1:
            return self.wrt[argument].vjp(op, (*upstream, *[None] * (self.outputs - len(upstream))))
        return None if upstream[0] is None else self.wrt[argument].vjp(op, upstream[0])


Tables = Callable[[str, Sequence[Any], Sequence[Tensor], Sequence[Tensor | None] | None], Iterable[Working]]
"""The tables of a call that runs as many operations, from its name, arguments and results; of the way back, where the
gradients of the results are given."""

_tables: dict[str, Tables] = {}


def tables_of(call: str) -> Tables | None:
    """What gives the tables of a call, if a rule states them."""
    return _tables.get(call)


def state_tables(*calls: str) -> Callable[[Tables], Tables]:
    """State the tables of some calls."""

    def register(tables: Tables) -> Tables:
        _tables.update(dict.fromkeys(calls, tables))
        return tables

    return register


_by_node: dict[str, list[Rule]] = {}
_by_call: dict[str, list[Rule]] = {}
_all: list[Rule] = []


def rule(
    *nodes: str | type,
    equation: Latex,
    wrt: Mapping[str, Wrt],
    samples: Callable[[], Iterable[Sample]] = tuple,
    source: str = "",
    name: str = "",
    facts: Mapping[str, Facts] | None = None,
    **more: Any,
) -> Rule:
    """Register a rule and return it. See `Rule` for what the parts are; `name` defaults to that of the first node.

    Of an operator that is not PyTorch's, a node is given as its name (`"mylib::softclip"`), and of an
    `autograd.Function` as the class. `source` defaults to the entry of that name in PyTorch's list of derivatives.
    `facts` are those of its operations, by their names (see `rules.facts`): what the other parts of the package ask
    beside the derivatives.
    """
    register_facts(facts or {})
    names = tuple(node if isinstance(node, str) else name_of_function(node) for node in nodes)
    name = name or snake(re.split(r"::|\.", names[0])[-1] if names else more["calls"][0])
    ours = samples.__module__.startswith(f"{__name__}.")
    made = Rule(
        name=name,
        nodes=names,
        equation=equation,
        wrt=wrt,
        samples=samples,
        source=source or (f"derivatives.yaml: {name}" if ours else ""),
        **{"topic": samples.__module__.rsplit(".", 1)[-1] if ours else "", "ours": ours, **more},
    )
    _all.append(made)
    _by_operation.cache_clear()
    for node in names:
        _by_node.setdefault(plain(node), []).append(made)
    for call in made.calls:
        _by_call.setdefault(call, []).append(made)
    return made


def elementwise(
    *nodes: str | type,
    equation: Expression | str,
    derivative: Mapping[str, Any] | Iterable[str],
    samples: Callable[[], Iterable[Sample]] = tuple,
    source: str = "",
    **more: Any,
) -> Rule:
    """Register an elementwise y = f(x), from f and, for each argument, f' as formulas that run and print.

    Where f' is f differentiated, the argument's name is enough; otherwise f' is given, in terms of the output or with
    a convention at a corner. The VJP follows: x_bar = y_bar * conj(f'(x)), and the Jacobian is diagonal. Of a real
    output the derivative by a complex argument is PyTorch's gradient, x_bar = y_bar * f'(x). Arguments broadcast.
    """
    result = stated(equation) if isinstance(equation, Expression) else equation
    if not isinstance(derivative, Mapping):
        assert isinstance(equation, Expression)
        derivative = {argument: equation.derivative(argument) for argument in derivative}
    formulas = [each for each in (equation, *map(of, derivative.values())) if isinstance(each, Expression)]
    return rule(
        *nodes,
        equation=result,
        wrt={argument: elementwise_wrt(argument, result, of(local)) for argument, local in derivative.items()},
        samples=samples,
        source=source,
        structure="elementwise",
        where=partial(meanings, formulas),
        **more,
    )


def elementwise_wrt(argument: str, equation: Latex, local: Expression) -> Wrt:
    """The derivative of an elementwise y = f(x), from f'(x)."""

    def vjp(op: Any, g: Tensor) -> Tensor:
        slope = local.run(op)
        if not isinstance(slope, Tensor):
            gradient = g * (slope.conjugate() if isinstance(slope, complex) else slope)
        elif slope.dtype == torch.bool:
            gradient = torch.where(slope, g, 0)  # what is stopped is 0, also where g is infinite
        else:
            gradient = g * (slope.conj() if op.out.is_complex() else slope)
        return _in_type_of(op.arguments[argument], gradient)

    def written(op: Any) -> tuple[str, str]:
        return _text(equation, op), local.put(op).text

    def factor(op: Any, out_index: tuple[int, ...], in_index: tuple[int, ...]) -> Factor:
        return _diagonal(op, out_index, *op.once(written))

    zeros = "each output element depends on its own input element alone, so only the diagonal can differ from zero"
    product = partial(times_upstream, local, argument)
    return Wrt(vjp, local, product, zeros, factor, lambda op: _pattern(op, argument))


def _pattern(op: Any, argument: str) -> Pattern | None:
    operand = op.arguments[argument]
    return aligned(op.out.shape, operand.shape) if real(op.out, operand) else None


def _in_type_of(operand: Any, gradient: Tensor) -> Tensor:
    """A gradient in its operand's number type: promotion is undone, and a real operand takes the real part."""
    if not isinstance(operand, Tensor):
        return gradient
    if gradient.is_complex() and not operand.is_complex():
        gradient = gradient.real
    return gradient.to(operand.dtype)


def _diagonal(op: Any, out_index: tuple[int, ...], equation: str, local: str) -> Factor:
    """Name one diagonal entry: an operand's element, f'(x) where f has a name and f' has cases, or the formula."""
    sign, operand = re.fullmatch(r"(-?)(.*)", local, re.DOTALL).groups()  # type: ignore[union-attr]
    scale = -1.0 if sign else 1.0
    tensor = op.arguments.get(operand.removeprefix("$")) if operand.startswith("$") else None
    if isinstance(tensor, Tensor):
        return Factor(operand.removeprefix("$"), broadcast_index(out_index, tensor.shape), scale=scale)
    if operand == "1":
        return Factor(latex="1", scale=scale)
    named = re.fullmatch(r"\$out = (\\operatorname\{\w+\})\(\$self\)", equation)
    if named and local.startswith(r"\begin{cases}"):
        return Factor(latex=f"{named[1]}'($self)")
    return Factor(latex=local)


def _items(op: Applied, symbols: Mapping[str, str]) -> dict[str, str]:
    """The symbols of a list's tensors, `$tensors0`, and of their gradients, `$grad0`."""
    found: dict[str, str] = {}
    for name, given in op.arguments.items():
        if isinstance(given, list) and name in symbols:
            listed = symbols[name].split(", ")
            for place in range(len(given)):
                symbol = listed[place] if len(listed) == len(given) else f"{symbols[name]}_{{{place}}}"
                found |= {f"{name}{place}": symbol, f"grad{place}": rf"\bar{{{symbol}}}"}
    return found


def latex_of(template: Latex, op: Any) -> str:
    """A LaTeX template, made from the operation where it depends on it."""
    return template(op) if callable(template) else template


def _text(template: Latex, op: Any) -> str:
    try:
        return op.once(template) if callable(template) and isinstance(op, Applied) else latex_of(template, op)
    except RuntimeError:
        if op.has_numbers:
            raise
        return r"\text{(its form depends on numbers that were not kept)}"


def name_of_function(function: type) -> str:
    """The name under which the rule of an `autograd.Function` is registered: its module and qualified name."""
    return f"{function.__module__}.{function.__qualname__}"


def for_node(node: str, op: Applied | None = None) -> Rule | None:
    """The rule that answers to an autograd node's name (`MulBackward0`), or None; version suffixes are ignored.

    An operator that is not PyTorch's is asked for by its own name, and a user's Function by `name_of_function`.
    """
    load()
    return _choose(_by_node.get(plain(node), []), op)


def for_operation(op: Applied) -> Rule | None:
    """The rule that answers to the node that an operation has, or would have where a gradient is wanted, or None."""
    load()
    return _choose(_by_operation().get(re.sub(r"^aten\.|\..*|_", "", op.name).lower(), []), op)


@cache
def _by_operation() -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {}
    for node, several in _by_node.items():
        found.setdefault(re.sub("Backwards?$", "", node).lower(), []).extend(several)
    return found


def all_for_call(call: str) -> tuple[Rule, ...]:
    """The rules that explain a torch function of several nodes as one (`linear`); each `accepts` some of its calls."""
    load()
    return tuple(_by_call.get(call, ()))


def registered() -> Iterator[Rule]:
    """Every rule, topic by topic."""
    load()
    yield from _all


@cache
@gc_paused()
def load() -> None:
    """Read the topic files, all modules of this package, and the rules of plug-ins.

    Not done on import, so that recording does not pay for it.
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name not in NO_TOPICS:
            importlib.import_module(f"{__name__}.{module.name}")
    plugins.load("rules")


def _choose(candidates: list[Rule], op: Applied | None) -> Rule | None:
    return next((each for each in candidates if op is None or each.accepts(op)), None)


def plain(node: str) -> str:
    """An autograd node's name without its version: `MulBackward0` and `MulBackward1` are both `MulBackward`.

    `AliasBackward0_copy`, of the operation that copies where `alias` makes a view, is `AliasBackward` too. The name of
    a user's operator or Function is whole.
    """
    return node if {".", ":"} & set(node) else re.sub(r"\d+(_copy)?$", "", node)


def snake(node: str) -> str:
    """`NativeLayerNormBackward0` -> `native_layer_norm`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain(node).removesuffix("Backward")).lower()


def parenthesise(latex: str) -> str:
    """Put brackets around a sum, so that it can be a factor."""
    depth = 0
    for token in re.finditer(r"\\begin|\\end|\S", latex):
        depth += (token[0] in ("(", "{", "[", r"\begin")) - (token[0] in (")", "}", "]", r"\end"))
        if depth == 0 and token.start() and token[0] in "+-":
            return rf"\left({latex}\right)"
    return latex


def at(name: str, indices: Iterable[str]) -> str:
    """An element of an operand in LaTeX: `{$self}_{n,i}`."""
    places = ",".join(indices)
    return rf"{{${name}}}_{{{places}}}" if places else f"${name}"


def lettered(template: str, letters: Mapping[str, str]) -> str:
    """A template whose subscripts depend on the call: `@h` stands for `letters["h"]`; empty subscripts are left out."""
    for name, text in letters.items():
        template = re.sub(rf"@{name}\b", lambda _, text=text: text, template)  # type: ignore[misc]
    return template.replace("_{,", "_{").replace("_{}", "")


def derivative(of: str, by: str, value: str) -> str:
    """A local derivative in LaTeX, element by element; those that it does not name are 0."""
    return rf"\frac{{\partial {of}}}{{\partial {by}}} = {value}"


def reduce_to_shape(gradient: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Sum over the axes that broadcasting added or stretched; also says which axes of `gradient` those were.

    If x of `shape` was stretched along some axes, every copy's gradient belongs to the one x: x_bar = sum of copies.

    Raises RuleError where `gradient` cannot have come from broadcasting `shape`.
    """
    added = gradient.dim() - len(shape)
    axes = (
        tuple(range(added))
        + tuple(axis + added for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis + added] != 1)
        if added >= 0
        else ()
    )
    reduced = gradient.sum(axes, keepdim=True) if axes else gradient
    if added < 0 or reduced.shape[added:] != torch.Size(shape):
        raise RuleError(
            f"a gradient of shape {tuple(gradient.shape)} cannot be summed to shape {tuple(shape)}. A rule returns the "
            "argument's own shape, or the output's where the argument was broadcast."
        )
    return reduced.reshape(shape), axes
