r"""What each optimizer does to one parameter, term by term: the equation, the numbers put in, and the value.

One block is one optimizer; registering it under its class name is enough. Each formula is written once: its
hyperparameters are placeholders (`$lr`), which become symbols in `Term.equation` and numbers in `Term.numbers`, while
`$theta` and `$g` stay for the teller to fill in. The values are our own plain tensor code, from what was there before
the step; the last one is the new parameter, and equals PyTorch's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, TypeVar

import torch
from torch import Tensor

from chainrule.graph.snapshot import ParameterUpdate, Snapshot
from chainrule.rules import number

Number = TypeVar("Number", Tensor, float)
Block = Callable[["Derivation"], None]

SYMBOLS = {
    "lr": r"\eta", "momentum": r"\mu", "dampening": r"\tau", "weight_decay": r"\lambda", "beta1": r"\beta_1",
    "beta2": r"\beta_2", "eps": r"\varepsilon", "alpha": r"\alpha", "lr_decay": r"\gamma", "momentum_decay": r"\psi",
    "rho": r"\rho", "t": "t", "s": "t-1",
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


@dataclass
class Derivation:
    """An update being worked out. `theta` and `g` are the parameter and the gradient as they stand by now."""

    theta: Tensor
    g: Tensor
    state: dict[str, Any]
    hyper: dict[str, Any]
    theta_symbol: str = "$theta"
    g_symbol: str = "$g"
    terms: list[Term] = field(default_factory=list)

    def __getattr__(self, name: str) -> float:
        """A hyperparameter (or a switch), by its name in the optimizer's param group."""
        try:
            value: float = self.__dict__["hyper"][name]
            return value
        except KeyError:
            raise AttributeError(name) from None

    def before(self, name: str) -> Tensor:
        """A state tensor as it was before the step: zeros at the first one."""
        value: Tensor = self.state.get(name, torch.zeros_like(self.theta))
        return value

    def add(self, symbol: str, formula: str, value: Number, meaning: str) -> Number:
        """Write the next term; `@g` and `@theta` in the formula are the current gradient and parameter."""
        return self._write(symbol, "=", formula, value, meaning)

    def finish(self, formula: str, value: Tensor, meaning: str = "the new parameter") -> None:
        """Write the last term, the new parameter."""
        self._write("$theta", r"\leftarrow", formula, value, meaning)

    def _write(self, symbol: str, relation: str, formula: str, value: Number, meaning: str) -> Number:
        text = f"{symbol} {relation} {formula}".replace("@g", self.g_symbol).replace("@theta", self.theta_symbol)
        numbers = {name: number(each) for name, each in self.hyper.items() if type(each) in (int, float)}
        equation, with_numbers = (Template(text).safe_substitute(names) for names in (SYMBOLS, numbers))
        self.terms.append(Term(symbol, equation, with_numbers, value, meaning))
        return value


_blocks: dict[str, tuple[frozenset[str], Block]] = {}


def explains(*names: str, options: str) -> Callable[[Block], Block]:
    """Register a block under the class names of the optimizers that it explains, with the options that it reads."""

    def register(block: Block) -> Block:
        _blocks.update(dict.fromkeys(names, (frozenset(options.split()), block)))
        return block

    return register


def explained() -> tuple[str, ...]:
    """The class names of the optimizers that have a block."""
    return tuple(_blocks)


@torch.no_grad()
def terms(update: ParameterUpdate, optimizer: str) -> tuple[Term, ...] | None:
    """The update of one parameter, term by term; the last is the new parameter.

    `optimizer` is the class name. None where there is no block for it, no dense gradient, or where its options are not
    those of PyTorch's optimizer of that name. Where some of the numbers were not kept, terms have shapes alone.
    """
    update = update if update.is_whole else update.without_numbers()
    options, block = _blocks.get(optimizer, (frozenset(), None))
    if block is None or update.grad is None or update.grad.layout != torch.strided or options - update.options.keys():
        return None
    # PyTorch updates a complex parameter as pairs of real numbers, and so do we.
    state = {name: as_real(each) for name, each in update.state_before.items() if each is not None}
    hyper = hyperparameters(update.options, state)
    derivation = Derivation(as_real(update.before), as_real(update.grad), state, hyper)
    block(derivation)
    if not update.before.is_complex():
        return tuple(derivation.terms)
    return tuple(replace(each, value=as_complex(each.value)) for each in derivation.terms)


PART = 2**19  # elements that are worked out at a time where nothing is told of them but that they agree


def terms_agree(
    update: ParameterUpdate, optimizer: str, agree: Callable[[Tensor, ParameterUpdate], bool]
) -> bool | None:
    """Whether the new parameter is what the terms say, by `agree(ours, update)`; None where `terms` has none.

    Every optimizer explained here works element by element, so a large parameter is worked out part by part.
    """
    found = []
    for part in _parts(update):
        worked_out = terms(part, optimizer)
        if worked_out is None:
            return None
        value = worked_out[-1].value
        found.append(agree(value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32), part))
    return all(found)


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
    """A complex tensor as pairs of real numbers; all else as it is."""
    return torch.view_as_real(value) if isinstance(value, Tensor) and value.is_complex() else value


def as_complex(value: Any) -> Any:
    """The way back."""
    return torch.view_as_complex(value) if isinstance(value, Tensor) else value


def hyperparameters(options: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The param group's options as numbers, with both betas by name, and `t`, the number of this step (`s`: t - 1)."""
    plain = {name: each.item() if isinstance(each, Tensor) else each for name, each in options.items()}
    for position, beta in enumerate(options.get("betas") or (), start=1):
        plain[f"beta{position}"] = float(beta)
    step = int(state.get("step", 0))
    return {**plain, "t": step + 1, "s": step}


# Steps that several optimizers share.


def adjust_gradient(d: Derivation, decay: bool = True) -> None:
    """Turn the gradient round where the objective is maximised, and add weight decay as a gradient of its own."""
    decays = decay and d.weight_decay != 0
    if not (d.maximize or decays):
        return
    g = -d.g if d.maximize else d.g
    formula = "-@g" if d.maximize else "@g"
    reasons = ["turned round, since the objective is maximised"] if d.maximize else []
    if decays:
        g = g + d.weight_decay * d.theta
        formula += r" + $weight_decay \, @theta"
        reasons.append("with weight decay, which pulls the parameter towards 0")
    d.g = d.add("g_t", formula, g, "the gradient, " + ", and ".join(reasons))
    d.g_symbol = "g_t"


def decay_weights(d: Derivation) -> None:
    """Weight decay where it may be decoupled: taken off the parameter itself, apart from the gradient."""
    decoupled = d.hyper.get("decoupled_weight_decay", False)
    adjust_gradient(d, decay=not decoupled)
    if decoupled and d.weight_decay != 0:
        shrunk = d.theta * (1 - d.lr * d.weight_decay)
        meaning = "decoupled weight decay: the parameter shrinks, whatever its gradient"
        d.theta = d.add(r"\tilde{\theta}_t", r"(1 - $lr \cdot $weight_decay) \, @theta", shrunk, meaning)
        d.theta_symbol = r"\tilde{\theta}_t"


def moments(d: Derivation) -> tuple[Tensor, Tensor]:
    """Running means of the gradient and of its square (Adam and its kin)."""
    return first_moment(d), second_moment(d, "beta2", "exp_avg_sq")


def first_moment(d: Derivation) -> Tensor:
    """Running mean of the gradient."""
    m = d.beta1 * d.before("exp_avg") + (1 - d.beta1) * d.g
    return d.add("m_t", r"$beta1 \, m_{t-1} + (1 - $beta1) \, @g", m, "first moment: running mean of the gradient")


def second_moment(d: Derivation, rate: str, name: str) -> Tensor:
    """Running mean of the squared gradient, element by element."""
    kept: float = d.hyper[rate]
    v = kept * d.before(name) + (1 - kept) * d.g * d.g
    formula = rf"${rate} \, v_{{t-1}} + (1 - ${rate}) \, @g \odot @g"
    return d.add("v_t", formula, v, "second moment: running mean of the squared gradient")


def unbiased(d: Derivation, symbol: str, source: str, value: Tensor, beta: str) -> Tensor:
    """Undo the pull towards the zeros that a running mean began with."""
    corrected: Tensor = value / (1 - d.hyper[beta] ** d.t)
    formula = rf"\frac{{{source}}}{{1 - {{${beta}}}^{{$t}}}}"
    return d.add(symbol, formula, corrected, "bias correction: the running mean began at 0")


def subtract_step(d: Derivation, formula: str, step: Tensor) -> None:
    """The step, and the parameter less the step."""
    d.add(r"\Delta_t", formula, step, "the step")
    d.finish(r"@theta - \Delta_t", d.theta - step)


@explains("SGD", options="lr momentum dampening nesterov weight_decay maximize")
def sgd(d: Derivation) -> None:
    """Stochastic gradient descent, with momentum (Polyak, 1964) or Nesterov's.

    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013.
    PyTorch keeps the learning rate out of the momentum buffer, which begins as the first gradient, undampened.
    """
    adjust_gradient(d)
    direction, symbol = d.g, "@g"
    if d.momentum != 0:
        direction, symbol = momentum_buffer(d), "b_t"
    if d.momentum != 0 and d.nesterov:
        meaning = "Nesterov momentum: the gradient, and where the momentum would carry it"
        direction = d.add("n_t", r"@g + $momentum \, b_t", d.g + d.momentum * direction, meaning)
        symbol = "n_t"
    subtract_step(d, rf"$lr \, {symbol}", d.lr * direction)


def momentum_buffer(d: Derivation) -> Tensor:
    """SGD's running sum of gradients."""
    before: Tensor | None = d.state.get("momentum_buffer")
    if before is None:
        return d.add("b_t", "@g", d.g.clone(), "momentum: begins as the first gradient")
    buffer = d.momentum * before + (1 - d.dampening) * d.g
    share = r"(1 - $dampening) \, @g" if d.dampening else "@g"
    return d.add("b_t", rf"$momentum \, b_{{t-1}} + {share}", buffer, "momentum: a fading sum of the gradients")


@explains("Adam", "AdamW", options="lr betas eps weight_decay maximize amsgrad")
def adam(d: Derivation) -> None:
    """Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    AdamW, with decoupled weight decay: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    AMSGrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018; PyTorch takes the maximum before
    the bias correction.
    """
    decay_weights(d)
    m, v = moments(d)
    largest = "v_t"
    if d.amsgrad:
        largest, meaning = r"v^{\max}_t", "AMSGrad: the largest second moment so far"
        v = d.add(largest, r"\max(v^{\max}_{t-1}, v_t)", torch.maximum(d.before("max_exp_avg_sq"), v), meaning)
    m_hat = unbiased(d, r"\hat{m}_t", "m_t", m, "beta1")
    v_hat = unbiased(d, r"\hat{v}_t", largest, v, "beta2")
    subtract_step(d, r"$lr \, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + $eps}", d.lr * m_hat / (v_hat.sqrt() + d.eps))


@explains("NAdam", options="lr betas eps weight_decay maximize momentum_decay")
def nadam(d: Derivation) -> None:
    """Adam with Nesterov momentum: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016."""
    decay_weights(d)
    m, v = moments(d)
    v_hat = unbiased(d, r"\hat{v}_t", "v_t", v, "beta2")

    def mu(t: float) -> float:
        return d.beta1 * (1 - float(0.5 * 0.96 ** (t * d.momentum_decay)))

    schedule = r"$beta1 \left(1 - \frac{1}{2} \cdot 0.96^{%s \cdot $momentum_decay}\right)"
    d.add(r"\mu_t", schedule % "$t", mu(d.t), "how much momentum counts at this step")
    d.add(r"\mu_{t+1}", schedule % "($t + 1)", mu(d.t + 1), "how much it will count at the next")
    # PyTorch keeps the product as a tensor, by default in single precision, and so rounds it.
    kept = (d.state.get("mu_product", default_scalar(1.0)) * mu(d.t)).item()
    product = d.add(r"\Pi_t", r"\Pi_{t-1} \, \mu_t", kept, "the product of all of them so far, for the bias correction")
    ahead = mu(d.t + 1) * m / (1 - product * mu(d.t + 1)) + (1 - mu(d.t)) * d.g / (1 - product)
    formula = r"\frac{\mu_{t+1} m_t}{1 - \Pi_t \mu_{t+1}} + \frac{(1 - \mu_t) \, @g}{1 - \Pi_t}"
    m_hat = d.add(r"\hat{m}_t", formula, ahead, "Nesterov: the first moment, looking one step ahead")
    subtract_step(d, r"$lr \, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + $eps}", d.lr * m_hat / (v_hat.sqrt() + d.eps))


def default_scalar(value: float) -> Tensor:
    """A number as PyTorch's optimizers keep theirs: float64 only where that is the default dtype."""
    return torch.tensor(value, dtype=torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32)


@explains("RAdam", options="lr betas eps weight_decay maximize")
def radam(d: Derivation) -> None:
    """Rectified Adam: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020."""
    decay_weights(d)
    m, v = moments(d)
    m_hat = unbiased(d, r"\hat{m}_t", "m_t", m, "beta1")
    limit = 2 / (1 - d.beta2) - 1
    left = 1 - d.beta2**d.t
    length = limit - 2 * d.t * d.beta2**d.t / left
    d.add(r"\rho_\infty", r"\frac{2}{1 - $beta2} - 1", limit, "how many steps the second moment spans at most")
    formula = r"\rho_\infty - \frac{2 \cdot $t \cdot {$beta2}^{$t}}{1 - {$beta2}^{$t}}"
    d.add(r"\rho_t", formula, length, "how many it spans by now")
    if length <= 5:
        subtract_step(d, r"$lr \, \hat{m}_t \quad (\rho_t \le 5)", d.lr * m_hat)
        return
    rectified = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5
    formula = r"\sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \, \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \, \rho_t}}"
    d.add("r_t", formula, rectified, "rectification: how far the second moment can be trusted yet")
    step = d.lr * m_hat * rectified * left**0.5 / (v.sqrt() + d.eps)
    subtract_step(d, r"$lr \, r_t \, \hat{m}_t \, \frac{\sqrt{1 - {$beta2}^{$t}}}{\sqrt{v_t} + $eps}", step)


@explains("Adamax", options="lr betas eps weight_decay maximize")
def adamax(d: Derivation) -> None:
    """Adam with the infinity norm: Kingma and Ba, ICLR 2015, section 7.1; PyTorch adds epsilon within the maximum."""
    adjust_gradient(d)
    m = first_moment(d)
    largest = torch.maximum(d.beta2 * d.before("exp_inf"), d.g.abs() + d.eps)
    formula = r"\max\left($beta2 \, u_{t-1}, \left|@g\right| + $eps\right)"
    u = d.add("u_t", formula, largest, "the largest gradient so far, fading")
    m_hat = unbiased(d, r"\hat{m}_t", "m_t", m, "beta1")
    subtract_step(d, r"$lr \, \frac{\hat{m}_t}{u_t}", d.lr * m_hat / u)


@explains("RMSprop", options="lr alpha eps centered momentum weight_decay maximize")
def rmsprop(d: Derivation) -> None:
    """RMSprop: Tieleman and Hinton, lecture 6.5, Coursera: Neural Networks for Machine Learning, 2012.

    Centred: Graves, "Generating Sequences With Recurrent Neural Networks", 2013. PyTorch adds epsilon outside the root.
    """
    adjust_gradient(d)
    v = second_moment(d, "alpha", "square_avg")
    variance = "v_t"
    if d.centered:
        mean = d.alpha * d.before("grad_avg") + (1 - d.alpha) * d.g
        formula = r"$alpha \, \bar{g}_{t-1} + (1 - $alpha) \, @g"
        mean = d.add(r"\bar{g}_t", formula, mean, "running mean of the gradient")
        variance, meaning = r"s_t", "centred: the variance of the gradient"
        v = d.add(variance, r"v_t - \bar{g}_t \odot \bar{g}_t", v - mean * mean, meaning)
    scaled = d.g / (v.sqrt() + d.eps)
    formula = rf"\frac{{@g}}{{\sqrt{{{variance}}} + $eps}}"
    if d.momentum > 0:
        buffer = d.momentum * d.before("momentum_buffer") + scaled
        scaled = d.add(
            "b_t", rf"$momentum \, b_{{t-1}} + {formula}", buffer, "momentum: a fading sum of scaled gradients"
        )
        formula = "b_t"
    subtract_step(d, rf"$lr \, {formula}", d.lr * scaled)


@explains("Adagrad", options="lr lr_decay eps weight_decay maximize")
def adagrad(d: Derivation) -> None:
    """Adagrad: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 12, 2011.

    PyTorch adds epsilon outside the root, and lets the learning rate decay as 1/t if asked.
    """
    adjust_gradient(d)
    began = torch.full_like(d.theta, d.hyper.get("initial_accumulator_value", 0.0))
    total = d.state.get("sum", began) + d.g * d.g
    total = d.add("G_t", r"G_{t-1} + @g \odot @g", total, "the sum of all squared gradients so far")
    rate, symbol = d.lr, "$lr"
    if d.lr_decay != 0:
        rate, symbol = d.lr / (1 + d.s * d.lr_decay), r"\eta_t"
        formula = r"\frac{$lr}{1 + ($s) \cdot $lr_decay}"
        d.add(symbol, formula, rate, "the learning rate, decayed with the number of steps")
    subtract_step(d, rf"{symbol} \, \frac{{@g}}{{\sqrt{{G_t}} + $eps}}", rate * d.g / (total.sqrt() + d.eps))


@explains("Adadelta", options="lr rho eps weight_decay maximize")
def adadelta(d: Derivation) -> None:
    """Adadelta: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012; PyTorch multiplies by a learning rate."""
    adjust_gradient(d)
    v = second_moment(d, "rho", "square_avg")
    before = d.before("acc_delta")
    formula = r"\frac{\sqrt{u_{t-1} + $eps}}{\sqrt{v_t + $eps}} \odot @g"
    delta = (before + d.eps).sqrt() / (v + d.eps).sqrt() * d.g
    d.add(r"\delta_t", formula, delta, "the gradient in the units of the parameter")
    kept = d.rho * before + (1 - d.rho) * delta * delta
    d.add("u_t", r"$rho \, u_{t-1} + (1 - $rho) \, \delta_t \odot \delta_t", kept, "running mean of the squared steps")
    subtract_step(d, r"$lr \, \delta_t", d.lr * delta)
