"""Optimizers in which one element of a parameter depends on others: Adafactor and Muon."""

from __future__ import annotations

from dataclasses import replace

import torch

from chainrule.rules.expression import PRODUCT
from chainrule.rules.optimizers import (
    Derivation,
    Written,
    adjust_gradient,
    explains,
    larger,
    shrink,
    smaller,
    sqrt,
    written,
)


def root_mean_square(each: Written) -> Written:
    """The root of the mean of the squared elements."""
    count = each.value.numel()
    return Written(
        rf"\frac{{\left\lVert {each.text} \right\rVert}}{{\sqrt{{{count}}}}}", each.value.norm() / count**0.5
    )


def mean(name: str, each: Written, axis: int) -> Written:
    """The mean of each row (`rowmean`) or column (`colmean`)."""
    return Written(rf"\operatorname{{{name}}}\left({each.text}\right)", each.value.mean(axis, keepdim=True))


def moved(d: Derivation, symbol: str, name: str, to: Written, by: Written, meaning: str) -> Written:
    """A running mean of the state."""
    kept = d.state.get(name)
    before = Written(f"{symbol}_{{t-1}}", torch.zeros_like(to.value) if kept is None else kept)
    d.keep(symbol, name)
    return d.add(f"{symbol}_t", (1 - by) * before + by * to, meaning)


@explains("Adafactor", options="lr beta2_decay eps d weight_decay maximize", elementwise=False)
def adafactor(d: Derivation) -> None:
    """Adafactor: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018.

    PyTorch bounds the second moment by the square of epsilon 1, where the paper adds epsilon 1 to the squared gradient.
    """
    adjust_gradient(d, decay=False)
    small = d.ep1
    if small.value is None:
        least = written(torch.finfo(d.recorded).eps)
        small = d.add(r"\varepsilon_1", least, "the least second moment: a last place of 1 in the parameter's type")
    fresh = d.add("k_t", d.t**d.beta2_decay, "how much the new squares count")
    rate = d.add(r"\rho_t", smaller(1 / sqrt(d.t), d.lr), "the learning rate, bounded by the number of steps")
    rate = larger(root_mean_square(d.theta), d.ep2) * rate
    rate = d.add(r"\alpha_t", rate, "the rate, relative to the size of the parameter")
    shrink(d)
    squares = d.g * d.g
    if d.g.value.dim() > 1:
        rows = moved(d, "R", "row_var", mean("rowmean", squares, -1), fresh, "running mean of the squares of each row")
        columns = mean("colmean", squares, -2)
        columns = moved(d, "C", "col_var", columns, fresh, "running mean of the squares of each column")
        least = larger(mean("colmean", rows, -2), small)
        product = Written(rf"{rows.text} \, {columns.text}", rows.value @ columns.value, PRODUCT)
        v = d.add("v_t", product / least, "second moment, put together from its rows and columns")
    else:
        v = moved(d, "v", "variance", squares, fresh, "second moment: running mean of the squared gradient")
    u = d.add("u_t", d.g / sqrt(larger(v, small * small)), "the gradient, scaled")
    clip = d.add("c_t", larger(root_mean_square(u) / d.d, 1.0), "the clipping: the scaled gradient is at most so large")
    d.step(rate / clip * u)


@explains(
    "Muon", options="lr momentum nesterov ns_coefficients ns_steps eps adjust_lr_fn weight_decay", elementwise=False
)
def muon(d: Derivation) -> None:
    """Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    PyTorch's momentum is a running mean, and the matrix is made orthogonal in bfloat16. The rate fits the shape as in
    the original, or as in Liu et al., "Muon is Scalable for LLM Training", 2025 (`match_rms_adamw`).
    """
    b, rest = d.before("momentum_buffer", "b"), 1 - d.hyper["momentum"]
    kept = (d.momentum * b + (1 - d.momentum) * d.g).text
    b = d.add("b_t", Written(kept, b.value.lerp(d.g.value, rest)), "momentum: running mean of the gradient")
    u = b
    if d.nesterov:
        ahead = Written(((1 - d.momentum) * d.g + d.momentum * b).text, d.g.value.lerp(b.value, d.hyper["momentum"]))
        u = d.add("u_t", ahead, "Nesterov momentum: the gradient, and where the momentum would carry it")
    x = _orthogonal(d, u)
    count, across = d.theta.value.shape
    rate = d.lr
    if d.hyper["adjust_lr_fn"] == "match_rms_adamw":
        rate = d.add(
            r"\eta_t", d.lr * (written(0.2) * sqrt(written(max(count, across)))), "the rate that fits the shape"
        )
    elif count > across:
        rate = d.add(r"\eta_t", d.lr * sqrt(written(count) / across), "the rate that fits the shape")
    shrink(d)
    d.step(rate * replace(x, value=x.value.to(d.theta.value.dtype)))


def _orthogonal(d: Derivation, u: Written) -> Written:
    """The matrix with the singular vectors of another and singular values near 1, by Newton and Schulz's iteration."""
    tall = u.value.shape[0] > u.value.shape[1]
    value = u.value.bfloat16()
    value = (value.T if tall else value) / value.norm().clamp(min=d.hyper["eps"])
    size = larger(Written(rf"\left\lVert {u.text} \right\rVert", u.value.norm()), d.eps)
    x = d.add("O_0", replace(u / size, value=value.T if tall else value), "as large as 1, in bfloat16")
    a, b, c = (d.hyper[f"ns_coefficient{place}"] for place in (1, 2, 3))
    for step in range(1, d.hyper["ns_steps"] + 1):
        gram, name = value @ value.T, x.text
        value = torch.addmm(value, torch.addmm(gram, gram, gram, beta=b, alpha=c), value, beta=a)
        a_text = rf"{name}^{{T}} \, {name}" if tall else rf"{name} \, {name}^{{T}}"
        inner = rf"\left($ns_coefficient2 \, {a_text} + $ns_coefficient3 \, {{\left({a_text}\right)}}^{{2}}\right)"
        product = rf"{name} \, {inner}" if tall else rf"{inner} \, {name}"
        formula = Written(rf"$ns_coefficient1 \, {name} + {product}", value.T if tall else value)
        meaning = f"step {step} of {d.hyper['ns_steps']} towards an orthogonal matrix"
        x = d.add(f"O_{step}", formula, meaning)
    return x
