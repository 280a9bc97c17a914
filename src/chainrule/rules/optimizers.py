r"""What each optimizer does to one parameter, term by term: the equation, the numbers put in, and the value.

One block is one optimizer; registering it under its class name is enough. Each formula is written once, in `Written`
quantities, whose operators print and compute in one: hyperparameters print as placeholders (`$lr`), which become
symbols in `Term.equation` and numbers in `Term.numbers`, while `$theta` and `$g` stay for the report to fill in. The
values are worked out from what was there before the step; the last one is the new parameter, and equals PyTorch's up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any

import torch
from torch import Tensor

from chainrule.graph.snapshot import ParameterUpdate, Snapshot
from chainrule.rules import load, number
from chainrule.rules.expression import ATOM, PRODUCT, SUM

Block = Callable[["Derivation"], None]

SYMBOLS = {
    "lr": r"\eta", "momentum": r"\mu", "dampening": r"\tau", "weight_decay": r"\lambda", "beta1": r"\beta_1",
    "beta2": r"\beta_2", "eps": r"\varepsilon", "alpha": r"\alpha", "lr_decay": r"\gamma", "momentum_decay": r"\psi",
    "rho": r"\rho", "t": "t", "s": "t-1", "eta1": r"\eta^{-}", "eta2": r"\eta^{+}", "step_size1": r"\delta_{\min}",
    "step_size2": r"\delta_{\max}", "lambd": r"\kappa", "beta2_decay": r"\tau", "d": "d", "ep1": r"\varepsilon_1",
    "ep2": r"\varepsilon_2", "ns_coefficient1": "a", "ns_coefficient2": "b", "ns_coefficient3": "c",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """One line of an update: `equation` and `numbers` define `symbol`, whose value is `value`.

    `$theta` and `$g` in the LaTeX are `string.Template` placeholders for the parameter and its gradient.
    """

    symbol: str
    equation: str
    numbers: str
    value: Tensor | float
    meaning: str


Operator = Callable[["Written", Any], "Written"]


def both(build: Operator) -> tuple[Operator, Operator]:
    """An operator with the quantity on its left, and on its right."""
    return lambda a, b: build(a, written(b)), lambda a, b: build(written(b), a)


@dataclass(frozen=True)
class Written:
    """A number or a tensor, and the LaTeX of how it was worked out, which binds as tightly as `binds`."""

    text: str
    value: Any
    binds: int = ATOM

    def at(self, level: int) -> str:
        """Its LaTeX inside something that binds as tightly as `level`."""
        left, right = (r"\left(", r"\right)") if r"\frac" in self.text else "()"
        return self.text if self.binds >= level else f"{left}{self.text}{right}"

    __add__, __radd__ = both(lambda a, b: Written(f"{a.text} + {b.text}", a.value + b.value, SUM))
    __sub__, __rsub__ = both(lambda a, b: Written(f"{a.text} - {b.at(PRODUCT)}", a.value - b.value, SUM))
    __mul__, __rmul__ = both(lambda a, b: Written(_times(a, b), a.value * b.value, PRODUCT))
    __truediv__, __rtruediv__ = both(lambda a, b: Written(rf"\frac{{{a.text}}}{{{b.text}}}", a.value / b.value))
    __pow__, _ = both(lambda a, b: Written(f"{{{a.at(ATOM)}}}^{{{b.text}}}", a.value**b.value))

    def __neg__(self) -> Written:
        return Written(f"-{self.at(PRODUCT)}", -self.value, PRODUCT)

    def __bool__(self) -> bool:
        # A tensor is a variable of the lab, and its term stays whatever it holds.
        return isinstance(self.value, Tensor) or bool(self.value)


def written(value: Any) -> Written:
    """A plain number as a `Written`; a `Written` is returned unchanged."""
    return value if isinstance(value, Written) else Written(number(value), value)


def _times(a: Written, b: Written) -> str:
    numbers = sum(not (isinstance(each.value, Tensor) and each.value.dim()) for each in (a, b))
    sign = (r"\odot", r"\,", r"\cdot")[numbers]
    return f"{a.at(PRODUCT)} {sign} {b.at(PRODUCT)}"


def sqrt(root: Written) -> Written:
    """A square root."""
    return Written(rf"\sqrt{{{root.text}}}", root.value**0.5)


def size(each: Written) -> Written:
    """The absolute value of each element."""
    return Written(rf"\left|{each.text}\right|", each.value.abs())


def larger(a: Written, b: Any) -> Written:
    """The elementwise maximum."""
    return _of_both(r"\max", torch.maximum, a, written(b))


def smaller(a: Written, b: Any) -> Written:
    """The elementwise minimum."""
    return _of_both(r"\min", torch.minimum, a, written(b))


def _of_both(name: str, function: Callable[[Tensor, Tensor], Tensor], a: Written, b: Written) -> Written:
    return Written(rf"{name}\left({a.text}, {b.text}\right)", function(_tensor(a.value), _tensor(b.value)))


def _tensor(value: Any) -> Tensor:
    """A plain number without rounding it: beside a tensor with axes it takes that one's type."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def sign(each: Written) -> Written:
    """The sign of each element."""
    return Written(rf"\operatorname{{sign}}\left({each.text}\right)", each.value.sign())


def chosen(cases: Mapping[str, tuple[Tensor, Any]], otherwise: Any) -> Written:
    """The value of the case that holds, element by element, by the LaTeX of its condition."""
    rest = written(otherwise)
    lines, value = "", rest.value
    for condition, (holds, each) in cases.items():
        lines += rf"{written(each).text} & \text{{if }} {condition} \\ "
        value = torch.where(holds, _tensor(written(each).value), _tensor(value))
    return Written(rf"\begin{{cases}} {lines}{rest.text} & \text{{otherwise}} \end{{cases}}", value)


@dataclass
class Derivation:
    """An update being worked out. `theta` and `g` are the parameter and the gradient at this point.

    `after` is the optimizer's state after the step, as far as terms are a part of it. Kernels work out coarse types in
    float32, and so do the terms. What is kept from step to step is rounded to the number type `stored` before the terms
    that follow read it; a `fused` kernel reads it unrounded. `recorded` is the type that the parameter had in the step,
    `counter` the number of the step where it is a tensor (`counter_of`).
    """

    theta: Written
    g: Written
    state: dict[str, Any]
    hyper: dict[str, Any]
    stored: torch.dtype
    recorded: torch.dtype
    counter: Tensor | None = None
    terms: list[Term] = field(default_factory=list)
    after: dict[str, Any] = field(default_factory=dict)
    _kept: dict[str, tuple[str, torch.dtype]] = field(default_factory=dict)  # the symbol after the step -> in the state

    def __getattr__(self, name: str) -> Written:
        """A hyperparameter (or a switch), by its name in the optimizer's param group."""
        try:
            return Written(f"${name}", self.__dict__["hyper"][name])
        except KeyError:
            raise AttributeError(name) from None

    @property
    def t(self) -> Written:
        """The number of this step; where PyTorch counts in a tensor, what is made of it is rounded as that is."""
        return Written("$t", self.hyper["t"] if self.counter is None else self.counter)

    def keep(self, symbol: str, name: str, dtype: torch.dtype | None = None) -> None:
        """The next term of this symbol is what the state will have under this name, in this number type."""
        self._kept[f"{symbol}_t"] = name, dtype or self.stored

    def before(self, name: str, symbol: str, first: float = 0.0) -> Written:
        """A state tensor as it was before the step: filled with `first` at the first one."""
        kept = self.state.get(name)
        self.keep(symbol, name)
        return Written(f"{symbol}_{{t-1}}", torch.zeros_like(self.theta.value) + first if kept is None else kept)

    def number_before(self, name: str, symbol: str, first: float) -> Written:
        """A number of the state as it was before the step; `first` at the first one."""
        kept = self.state.get(name)
        self.keep(symbol, name, torch.float64)
        return Written(f"{symbol}_{{t-1}}", (default_scalar(first) if kept is None else kept).double())

    def add(self, symbol: str, formula: Written, meaning: str, relation: str = "=", condition: str = "") -> Written:
        """Write the next term; returns it under its symbol, for the terms that follow."""
        if symbol in self._kept:
            name, dtype = self._kept[symbol]
            self.after[name] = formula.value
            if isinstance(formula.value, Tensor):
                self.after[name] = as_worked_out(formula.value.to(dtype))
                formula = formula if self.hyper.get("fused") else replace(formula, value=self.after[name])
        text = f"{symbol} {relation} {formula.text}{condition}"
        numbers = {name: number(each) for name, each in self.hyper.items() if type(each) in (int, float)}
        equation, with_numbers = (Template(text).safe_substitute(names) for names in (SYMBOLS, numbers))
        self.terms.append(Term(symbol, equation, with_numbers, formula.value, meaning))
        return Written(symbol, formula.value)

    def step(self, step: Written, condition: str = "") -> None:
        """Write the last two terms: the step, and the parameter less the step."""
        step = self.add(r"\Delta_t", step, "the step", condition=condition)
        new = self.theta - step
        self.add("$theta", replace(new, value=new.value.to(self.stored)), "the new parameter", r"\leftarrow")


_blocks: dict[str, tuple[frozenset[str], Block]] = {}
_whole: set[str] = set()  # the optimizers in which elements of a parameter depend on others


def explains(*names: str, options: str, elementwise: bool = True) -> Callable[[Block], Block]:
    """Register a block under the class names of the optimizers that it explains, with the options that it reads."""

    def register(block: Block) -> Block:
        _blocks.update(dict.fromkeys(names, (frozenset(options.split()), block)))
        _whole.update(() if elementwise else names)
        return block

    return register


def explained() -> tuple[str, ...]:
    """The class names of the optimizers that have a block."""
    load()
    return tuple(_blocks)


@torch.no_grad()
def terms(update: ParameterUpdate, optimizer: str) -> tuple[Term, ...] | None:
    """The update of one parameter, term by term; the last is the new parameter.

    `optimizer` is the class name. None where there is no block for it, where the parameter or its gradient is sparse,
    or where its options are not those of PyTorch's optimizer of that name. Where some of the numbers were not kept,
    terms have shapes alone.
    """
    derivation = worked_out(update if update.is_whole else update.without_numbers(), optimizer)
    if derivation is None:
        return None
    if not update.before.is_complex():
        return tuple(derivation.terms)
    return tuple(replace(each, value=as_complex(each.value)) for each in derivation.terms)


def without_terms(update: ParameterUpdate, optimizer: str) -> str:
    """Why an update has no terms."""
    load()
    if optimizer not in _blocks:
        return f"we have no rule for {optimizer}"
    if sparse := [name for name, each in (("gradient", update.grad), ("parameter", update.before))
                  if each is not None and each.layout != torch.strided]:  # fmt: skip
        return f"our rule for {optimizer} is for dense tensors, and its {sparse[0]} is not dense"
    return f"its options are not those of PyTorch's {optimizer}, which our rule is for"


def worked_out(
    update: ParameterUpdate, optimizer: str, variables: Mapping[str, Any] | None = None
) -> Derivation | None:
    """The derivation of an update, with the state that it leaves; `variables` replace hyperparameters."""
    load()  # the blocks of other files
    options, block = _blocks.get(optimizer, (frozenset(), None))
    if block is None or update.grad is None or options - update.options.keys():
        return None
    if update.grad.layout != torch.strided or update.before.layout != torch.strided:
        return None
    # PyTorch updates a complex parameter as pairs of real numbers, and so do we.
    state = {name: as_worked_out(as_real(each)) for name, each in update.state_before.items() if each is not None}
    hyper = hyperparameters(update.options, state) | dict(variables or {})
    before, grad = (as_real(each) for each in (update.before, update.grad))
    theta, g = Written("$theta", as_worked_out(before)), Written("$g", as_worked_out(grad))
    counter = counter_of(update, optimizer)
    derivation = Derivation(theta, g, state, hyper, before.dtype, update.after.dtype.to_real(), counter)
    block(derivation)
    return derivation


def counter_of(update: ParameterUpdate, optimizer: str) -> Tensor | None:
    """The number of this step as a tensor, where PyTorch works with it so: in float32, also of float64 parameters.

    It does if the step can be captured in a graph of the device, and Adam does if it can be differentiated.
    """
    switches = ("capturable", "differentiable") if optimizer in ("Adam", "AdamW") else ("capturable",)
    if not any(update.options.get(switch) for switch in switches):
        return None
    return default_scalar(hyperparameters(update.options, update.state_before)["t"])


PART = 2**19  # elements that are worked out at a time where only their agreement is asked for


def new_parameters(update: ParameterUpdate, optimizer: str) -> Iterator[tuple[Tensor, ParameterUpdate]]:
    """What the terms of an update give, with the update; of a large parameter part by part. Nothing without terms.

    A large parameter is worked out part by part, if the optimizer works element by element.
    """
    for part in [update] if optimizer in _whole else _parts(update):
        found = terms(part, optimizer)
        if found is None:
            return
        value = found[-1].value
        yield value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32), part


def _parts(update: ParameterUpdate) -> Iterator[ParameterUpdate]:
    shape = update.before.shape
    state = {
        name: each for name, each in update.state_before.items() if isinstance(each, Tensor) and each.shape == shape
    }
    whole = {"before": update.before, "grad": update.grad, "after": update.after, **state}
    if update.before.numel() <= PART or not all(
        isinstance(each, Tensor) and each.is_contiguous() for each in whole.values()
    ):
        yield update
        return
    split = {name: each.view(-1).split(PART) for name, each in whole.items() if each is not None}
    for place in range(len(split["before"])):
        part = {name: each[place] for name, each in split.items()}
        yield replace(
            update, start=Snapshot.of(part["before"]), gradient=Snapshot.of(part["grad"]),
            end=Snapshot.of(part["after"]),
            state_before={**update.state_before, **{name: part[name] for name in state}},
        )  # fmt: skip


def as_real(value: Any) -> Any:
    """A complex tensor as pairs of real numbers; anything else unchanged."""
    return torch.view_as_real(value) if isinstance(value, Tensor) and value.is_complex() else value


def as_worked_out(value: Any) -> Any:
    """A tensor of a coarse number type in float32; anything else unchanged."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def as_complex(value: Any) -> Any:
    """The way back from pairs of real numbers."""
    return torch.view_as_complex(value) if isinstance(value, Tensor) else value


def hyperparameters(options: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The param group's options as numbers, and `t`, the number of this step (`s`: t - 1).

    Those in a tuple have its name in the singular, and their place: `betas` are `beta1` and `beta2`.
    """
    plain = {name: each.item() if isinstance(each, Tensor) else each for name, each in options.items()}
    for name, several in options.items():
        if isinstance(several, (tuple, list)):
            for place, each in enumerate(several, start=1):
                plain[f"{name.removesuffix('s')}{place}"] = None if each is None else float(each)
    step = int(state.get("step", 0))
    return {**plain, "t": step + 1, "s": step}


CHANGEABLE = ("lr", "beta1", "beta2", "momentum", "dampening", "weight_decay", "eps", "alpha", "rho", "lr_decay",
              "momentum_decay", "lambd")  # fmt: skip


def changeable(hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """The hyperparameters that may have another value without another formula: a 0 takes its term out."""
    return tuple(name for name in CHANGEABLE if type(hyper.get(name)) in (int, float) and hyper[name])


# Steps that several optimizers share.


def adjust_gradient(d: Derivation, decay: bool = True) -> None:
    """Negate the gradient where the objective is maximised, and add weight decay to it."""
    g, reasons = d.g, []
    if d.maximize:
        g, reasons = -g, ["turned round, since the objective is maximised"]
    if decay and d.weight_decay:
        g = g + d.weight_decay * d.theta
        reasons.append("with weight decay, which pulls the parameter towards 0")
    if reasons:
        d.g = d.add("g_t", g, "the gradient, " + ", and ".join(reasons))


def decay_weights(d: Derivation) -> None:
    """Weight decay where it may be decoupled: taken off the parameter itself, apart from the gradient."""
    decoupled = d.hyper.get("decoupled_weight_decay", False)
    adjust_gradient(d, decay=not decoupled)
    if decoupled:
        shrink(d)


def shrink(d: Derivation) -> None:
    """Apply decoupled weight decay, if there is any."""
    if d.weight_decay:
        meaning = "decoupled weight decay: the parameter shrinks, whatever its gradient"
        d.theta = d.add(r"\tilde{\theta}_t", (1 - d.lr * d.weight_decay) * d.theta, meaning)


def first_moment(d: Derivation) -> Written:
    """Running mean of the gradient."""
    mean = d.beta1 * d.before("exp_avg", "m") + (1 - d.beta1) * d.g
    return d.add("m_t", mean, "first moment: running mean of the gradient")


def second_moment(d: Derivation, rate: Written, name: str) -> Written:
    """Running mean of the squared gradient, element by element."""
    mean = rate * d.before(name, "v") + (1 - rate) * d.g * d.g
    return d.add("v_t", mean, "second moment: running mean of the squared gradient")


def unbiased(d: Derivation, symbol: str, mean: Written, rate: Written) -> Written:
    """Undo the pull towards the zeros that a running mean began with."""
    return d.add(symbol, mean / (1 - rate**d.t), "bias correction: the running mean began at 0")


@explains("SGD", options="lr momentum dampening nesterov weight_decay maximize")
def sgd(d: Derivation) -> None:
    """Stochastic gradient descent, with momentum (Polyak, 1964) or Nesterov's.

    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013.
    PyTorch keeps the learning rate out of the momentum buffer, which begins as the first gradient, undampened.
    """
    adjust_gradient(d)
    direction = momentum_buffer(d) if d.momentum else d.g
    if d.momentum and d.nesterov:
        meaning = "Nesterov momentum: the gradient, and where the momentum would carry it"
        direction = d.add("n_t", d.g + d.momentum * direction, meaning)
    d.step(d.lr * direction)


def momentum_buffer(d: Derivation) -> Written:
    """SGD's running sum of gradients."""
    before = d.before("momentum_buffer", "b")
    if d.state.get("momentum_buffer") is None:
        factor = d.momentum.value
        named = "" if isinstance(factor, Tensor) else f"{number(factor)} "  # a variable of the lab
        meaning = f"momentum: begins as the first gradient; its factor {named}counts from the next step on"
        return d.add("b_t", replace(d.g, value=d.g.value.clone()), meaning)
    added = (1 - d.dampening) * d.g if d.dampening else d.g
    return d.add("b_t", d.momentum * before + added, "momentum: a fading sum of the gradients")


@explains("Adam", "AdamW", options="lr betas eps weight_decay maximize amsgrad")
def adam(d: Derivation) -> None:
    """Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    AdamW, with decoupled weight decay: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    AMSGrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018; PyTorch takes the maximum before
    the bias correction.
    """
    decay_weights(d)
    m, v = first_moment(d), second_moment(d, d.beta2, "exp_avg_sq")
    if d.amsgrad:
        largest = larger(d.before("max_exp_avg_sq", r"v^{\max}"), v)
        v = d.add(r"v^{\max}_t", largest, "AMSGrad: the largest second moment so far")
    m_hat, v_hat = unbiased(d, r"\hat{m}_t", m, d.beta1), unbiased(d, r"\hat{v}_t", v, d.beta2)
    d.step(d.lr * (m_hat / (sqrt(v_hat) + d.eps)))


@explains("NAdam", options="lr betas eps weight_decay maximize momentum_decay")
def nadam(d: Derivation) -> None:
    """Adam with Nesterov momentum: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016."""
    decay_weights(d)
    m, v = first_moment(d), second_moment(d, d.beta2, "exp_avg_sq")
    v_hat = unbiased(d, r"\hat{v}_t", v, d.beta2)

    def mu(t: Written) -> Written:
        half = Written(r"\frac{1}{2}", 0.5)
        return d.beta1 * (1 - half * written(0.96) ** (t * d.momentum_decay))

    now = d.add(r"\mu_t", mu(d.t), "how much momentum counts at this step")
    later = d.add(r"\mu_{t+1}", mu(d.t + 1), "how much it will count at the next")
    # PyTorch keeps the product as a tensor, by default in single precision, and so rounds it.
    d.keep(r"\Pi", "mu_product")
    kept = Written(r"\Pi_{t-1}", d.state.get("mu_product", default_scalar(1.0)))
    rounded = (kept.value * now.value).to(kept.value.dtype)
    in_tensors = isinstance(now.value, Tensor) or d.hyper.get("differentiable")
    product = replace(kept * now, value=rounded if in_tensors else rounded.item())
    product = d.add(r"\Pi_t", product, "the product of all of them so far, for the bias correction")
    ahead = later * m / (1 - product * later) + (1 - now) * d.g / (1 - product)
    m_hat = d.add(r"\hat{m}_t", ahead, "Nesterov: the first moment, looking one step ahead")
    d.step(d.lr * (m_hat / (sqrt(v_hat) + d.eps)))


def default_scalar(value: Any) -> Tensor:
    """A number as PyTorch's optimizers keep theirs: float64 only where that is the default dtype."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


@explains("RAdam", options="lr betas eps weight_decay maximize")
def radam(d: Derivation) -> None:
    """Rectified Adam: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020."""
    decay_weights(d)
    m, v = first_moment(d), second_moment(d, d.beta2, "exp_avg_sq")
    m_hat = unbiased(d, r"\hat{m}_t", m, d.beta1)
    most = d.add(r"\rho_\infty", 2 / (1 - d.beta2) - 1, "how many steps the second moment spans at most")
    left = 1 - d.beta2**d.t
    length = d.add(r"\rho_t", most - 2 * d.t * d.beta2**d.t / left, "how many it spans by now")
    is_variable = isinstance(length.value, Tensor)
    if not is_variable and length.value <= 5:
        d.step(d.lr * m_hat, condition=r" \quad (\rho_t \le 5)")
        return
    rectified = sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    rate = d.add("r_t", rectified, "rectification: how far the second moment can be trusted yet")
    step = d.lr * rate * m_hat * (sqrt(left) / (sqrt(v) + d.eps))
    if is_variable:
        step = replace(step, value=torch.where(length.value > 5, step.value, (d.lr * m_hat).value))
    d.step(step)


@explains("Adamax", options="lr betas eps weight_decay maximize")
def adamax(d: Derivation) -> None:
    """Adam with the infinity norm: Kingma and Ba, ICLR 2015, section 7.1; PyTorch adds epsilon within the maximum."""
    adjust_gradient(d)
    m = first_moment(d)
    u = larger(d.beta2 * d.before("exp_inf", "u"), size(d.g) + d.eps)
    u = d.add("u_t", u, "the largest gradient so far, fading")
    d.step(d.lr * (unbiased(d, r"\hat{m}_t", m, d.beta1) / u))


@explains("RMSprop", options="lr alpha eps centered momentum weight_decay maximize")
def rmsprop(d: Derivation) -> None:
    """RMSprop: Tieleman and Hinton, lecture 6.5, Coursera: Neural Networks for Machine Learning, 2012.

    Centred: Graves, "Generating Sequences With Recurrent Neural Networks", 2013. PyTorch adds epsilon outside the root.
    """
    adjust_gradient(d)
    v = second_moment(d, d.alpha, "square_avg")
    if d.centered:
        mean = d.alpha * d.before("grad_avg", r"\bar{g}") + (1 - d.alpha) * d.g
        mean = d.add(r"\bar{g}_t", mean, "running mean of the gradient")
        v = d.add("s_t", v - mean * mean, "centred: the variance of the gradient")
    scaled = d.g / (sqrt(v) + d.eps)
    if d.momentum:
        buffer = d.momentum * d.before("momentum_buffer", "b") + scaled
        scaled = d.add("b_t", buffer, "momentum: a fading sum of scaled gradients")
    d.step(d.lr * scaled)


@explains("Adagrad", options="lr lr_decay eps weight_decay maximize")
def adagrad(d: Derivation) -> None:
    """Adagrad: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 12, 2011.

    PyTorch adds epsilon outside the root, and lets the learning rate decay as 1/t if asked.
    """
    adjust_gradient(d)
    total = d.before("sum", "G", d.hyper.get("initial_accumulator_value", 0.0)) + d.g * d.g
    total = d.add("G_t", total, "the sum of all squared gradients so far")
    rate = d.lr
    if d.lr_decay:
        decayed = d.lr / (1 + replace(d.s, binds=SUM) * d.lr_decay)
        rate = d.add(r"\eta_t", decayed, "the learning rate, decayed with the number of steps")
    d.step(rate * d.g / (sqrt(total) + d.eps))


@explains("Adadelta", options="lr rho eps weight_decay maximize")
def adadelta(d: Derivation) -> None:
    """Adadelta: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012; PyTorch multiplies by a learning rate."""
    adjust_gradient(d)
    v, u = second_moment(d, d.rho, "square_avg"), d.before("acc_delta", "u")
    delta = sqrt(u + d.eps) / sqrt(v + d.eps) * d.g
    delta = d.add(r"\delta_t", delta, "the gradient in the units of the parameter")
    d.add("u_t", d.rho * u + (1 - d.rho) * delta * delta, "running mean of the squared steps")
    d.step(d.lr * delta)


@explains("Rprop", options="lr etas step_sizes maximize")
def rprop(d: Derivation) -> None:
    """Resilient backpropagation: Riedmiller and Braun, "A direct adaptive method for faster backpropagation", 1993.

    Where the gradient turns, PyTorch's takes no step back: Igel and Huesken, "Improving the Rprop Learning Algorithm",
    NC 2000 (there iRprop-).
    """
    adjust_gradient(d, decay=False)
    s = d.add("s_t", sign(d.g * d.before("prev", "p")), "whether the gradient has kept its sign, or turned (-1)")
    turned = s.value < 0
    factor = chosen({"s_t > 0": (s.value > 0, d.eta2), "s_t < 0": (turned, d.eta1)}, 1.0)
    factor = d.add("f_t", replace(factor, value=factor.value.to(d.g.value.dtype)), "the factor of the step size")
    size = larger(smaller(d.before("step_size", r"\delta", d.hyper["lr"]) * factor, d.step_size2), d.step_size1)
    size = d.add(r"\delta_t", size, "the size of the step, between its limits")
    kept = d.add("p_t", chosen({"s_t < 0": (turned, 0.0)}, d.g), "the gradient; 0 where it has turned, to rest there")
    d.step(size * sign(kept))


@explains("ASGD", options="lr lambd alpha t0 weight_decay maximize")
def asgd(d: Derivation) -> None:
    """Averaged SGD: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM 30, 1992.

    The rate of a step was set by the step before. The average is kept beside the parameter, and moves nothing.
    """
    adjust_gradient(d)
    rate, weight = d.number_before("eta", r"\eta", d.hyper["lr"]), d.number_before("mu", r"\mu", 1.0)
    later = d.lr / (1 + d.lambd * d.lr * d.t) ** d.alpha
    d.add(r"\eta_t", later, "the rate of the next step")
    meaning = "the decay term: the parameter shrinks, whatever its gradient"
    d.theta = d.add(r"\tilde{\theta}_t", (1 - d.lambd * rate) * d.theta, meaning)
    average = d.before("ax", "a")
    moved = average + weight * (d.theta - rate * d.g - average)
    d.add("a_t", moved, "the average of the parameters, which this step only writes")
    d.step(rate * d.g)
