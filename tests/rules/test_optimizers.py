"""Every update rule against the real optimizer: three steps, many combinations of options."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from string import Template
from typing import Any

import pytest
import torch

import chainrule
from chainrule.rules.optimizers import Term, explained, terms


def copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: each.clone() if isinstance(each, torch.Tensor) else each for name, each in state.items()}


def steps(
    optimizer_class: type[torch.optim.Optimizer],
    count: int = 3,
    dtype: torch.dtype = torch.float64,
    foreach: bool = False,
    shape: tuple[int, ...] = (2, 3),
    **options: Any,
) -> Iterator[Any]:
    """What the real optimizer does to a parameter, one step after the other."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    if optimizer_class is not torch.optim.Muon:  # which has one way alone
        options["foreach"] = foreach
    optimizer = optimizer_class([parameter], **options)  # type: ignore[call-arg]
    for _ in range(count):
        parameter.grad = torch.randn(shape, generator=generator, dtype=dtype)
        parameter.grad.view(-1)[0] = 0
        given = parameter.grad.clone()
        with chainrule.record(namespace={"w": parameter}) as recording:
            optimizer.step()
        ((update,),) = (each.parameters for each in recording.graph.updates)
        assert torch.equal(update.grad, given)  # also where the step writes to `.grad`
        yield update


def combinations(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


yes_no, decay = (False, True), (0.0, 0.1)
CASES = {
    "SGD": [
        *combinations(lr=(0.1, torch.tensor(0.1, dtype=torch.float64)), weight_decay=decay, maximize=yes_no),
        *combinations(lr=(0.1,), momentum=(0.9,), dampening=(0.0, 0.5), weight_decay=decay, maximize=yes_no),
        *combinations(lr=(0.1,), momentum=(0.9,), nesterov=(True,), weight_decay=decay, maximize=yes_no),
    ],
    "Adam": [
        *combinations(
            lr=(0.01, torch.tensor(0.01, dtype=torch.float64)),
            amsgrad=yes_no,
            weight_decay=decay,
            decoupled_weight_decay=yes_no,
            maximize=yes_no,
        ),
        {"betas": (0.5, 0.7), "eps": 0.01},
    ],
    "AdamW": combinations(lr=(0.01,), amsgrad=yes_no, weight_decay=decay, maximize=yes_no),
    "RMSprop": combinations(
        lr=(0.01,), alpha=(0.99, 0.5), centered=yes_no, momentum=(0, 0.9), weight_decay=decay, maximize=yes_no
    ),
    "Adagrad": combinations(
        lr=(0.01,), lr_decay=(0.0, 0.3), initial_accumulator_value=(0.0, 0.5), weight_decay=decay, maximize=yes_no
    ),
    "NAdam": combinations(lr=(0.01,), weight_decay=decay, decoupled_weight_decay=yes_no, maximize=yes_no),
    "RAdam": combinations(
        lr=(0.01,), betas=((0.9, 0.999), (0.5, 0.8)), weight_decay=decay, decoupled_weight_decay=yes_no, maximize=yes_no
    ),
    "Adamax": combinations(lr=(0.01,), weight_decay=decay, maximize=yes_no),
    "Adadelta": combinations(lr=(1.0, 0.1), weight_decay=decay, maximize=yes_no),
    "Rprop": combinations(lr=(0.01,), etas=((0.5, 1.2), (0.4, 2.0)), step_sizes=((0.008, 0.013),), maximize=yes_no),
    "ASGD": combinations(lr=(0.01,), lambd=(1e-4, 0.3), t0=(1.0, 1e6), weight_decay=decay, maximize=yes_no),
    "Adafactor": [
        *combinations(lr=(0.01,), weight_decay=decay, maximize=yes_no),
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.5, 3.0), "d": 1.1},
    ],
    "Muon": combinations(
        lr=(0.01,), nesterov=yes_no, weight_decay=decay, adjust_lr_fn=(None, "match_rms_adamw"), ns_steps=(2, 5)
    ),
}
ALL = [pytest.param(name, options, id=f"{name}-{i}") for name, each in CASES.items() for i, options in enumerate(each)]


def told(update: Any, name: str) -> tuple[Term, ...]:
    found = terms(update, name)
    assert found
    return found


def test_every_block_is_tried() -> None:
    assert set(CASES) == set(explained())


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_last_term_is_the_new_parameter(name: str, options: dict[str, Any], foreach: bool) -> None:
    if foreach and isinstance(options.get("lr"), torch.Tensor):
        return  # PyTorch refuses that
    # RAdam leaves its first regime at step 6 only.
    for update in steps(getattr(torch.optim, name), count=8 if name == "RAdam" else 3, foreach=foreach, **options):
        torch.testing.assert_close(told(update, name)[-1].value, update.after, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(7,), (4, 2, 3), (5, 2), (2, 2)])
@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_other_shapes_of_a_matrix(name: str, shape: tuple[int, ...]) -> None:
    if name == "Adafactor" or len(shape) == 2:  # Muon takes matrices alone
        for update in steps(getattr(torch.optim, name), shape=shape):
            torch.testing.assert_close(told(update, name)[-1].value, update.after, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_formulas_are_filled(name: str, options: dict[str, Any]) -> None:
    for term in told(next(steps(getattr(torch.optim, name), count=1, **options)), name):
        symbols = {"theta": "W", "g": "G"}
        for text in (term.symbol, term.equation, term.numbers):
            filled = Template(text).substitute(symbols)  # raises where a placeholder other than these two is left
            assert "@" not in filled
            assert filled.count("{") == filled.count("}")
        assert term.meaning


STATE = {"m_t": "exp_avg", "v_t": "exp_avg_sq", r"v^{\max}_t": "max_exp_avg_sq"}


def test_the_moments_are_those_that_adam_keeps() -> None:
    for update, following in itertools.pairwise(steps(torch.optim.Adam, count=3, amsgrad=True, weight_decay=0.1)):
        values = {term.symbol: term.value for term in told(update, "Adam")}
        for symbol, name in STATE.items():
            torch.testing.assert_close(values[symbol], following.state_before[name], rtol=1e-12, atol=1e-15)


def test_adam_reads_as_in_the_paper() -> None:
    equations = [(term.equation, term.numbers) for term in told(next(steps(torch.optim.Adam, lr=0.01)), "Adam")]
    assert equations == [
        (r"m_t = \beta_1 \, m_{t-1} + (1 - \beta_1) \, $g", r"m_t = 0.9 \, m_{t-1} + (1 - 0.9) \, $g"),
        (
            r"v_t = \beta_2 \, v_{t-1} + (1 - \beta_2) \, $g \odot $g",
            r"v_t = 0.999 \, v_{t-1} + (1 - 0.999) \, $g \odot $g",
        ),
        (r"\hat{m}_t = \frac{m_t}{1 - {\beta_1}^{t}}", r"\hat{m}_t = \frac{m_t}{1 - {0.9}^{1}}"),
        (r"\hat{v}_t = \frac{v_t}{1 - {\beta_2}^{t}}", r"\hat{v}_t = \frac{v_t}{1 - {0.999}^{1}}"),
        (
            r"\Delta_t = \eta \, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \varepsilon}",
            r"\Delta_t = 0.01 \, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + 1 \cdot 10^{-8}}",
        ),
        (r"$theta \leftarrow $theta - \Delta_t", r"$theta \leftarrow $theta - \Delta_t"),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    if dtype.is_complex and name in ("Adafactor", "Muon"):
        return  # PyTorch refuses that
    options = {"lr": 0.01} if name == "Rprop" else {"lr": 0.01, "weight_decay": 0.1}
    for update in steps(getattr(torch.optim, name), dtype=dtype, **options):
        new = told(update, name)[-1].value
        assert isinstance(new, torch.Tensor)
        assert new.dtype == dtype
        torch.testing.assert_close(new, update.after)


def test_nothing_that_was_recorded_is_changed() -> None:
    for update in steps(torch.optim.SGD, lr=0.1, momentum=0.9):
        kept = (
            update.before.clone(),
            update.grad.clone() if update.grad is not None else None,
            copy(update.state_before),
        )
        told(update, "SGD")[0].value.add_(1)  # type: ignore[union-attr]
        torch.testing.assert_close((update.before, update.grad, update.state_before), kept, rtol=0, atol=0)


def test_no_rule() -> None:
    update = next(steps(torch.optim.SGD, lr=0.1))
    assert terms(update, "Lion") is None
    assert terms(update, "Adam") is None  # not the options of PyTorch's Adam
    assert terms(replace(update, gradient=None), "SGD") is None
    assert terms(replace(update, gradient=update.gradient.filled(torch.ones(2, 3).to_sparse())), "SGD") is None
