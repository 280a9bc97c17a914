import warnings

import pytest
import torch
from torch import nn

from chainrule import record

NAN, INF = float("nan"), float("inf")


def leaf(*numbers, dtype=torch.float32):
    return torch.tensor(numbers, dtype=dtype, requires_grad=True)


def nonfinite_in(step, **names):
    """The findings on numbers that are not finite."""
    with warnings.catch_warnings(), record(names) as recording:
        warnings.simplefilter("ignore")
        step()
    return [finding for finding in recording.findings() if finding.id.startswith("non-finite")]


def forward(found):
    return [finding for finding in found if finding.id == "non-finite-forward"]


def backward(found):
    return [finding for finding in found if finding.id == "non-finite-backward"]


def lines(finding):
    return "\n".join(finding.evidence)


w_pair = (2.0, -1.2)


def log_of_negative(w):
    bad = w.log()
    (bad * 2).sum().backward()


def zero_by_zero(w):
    y = w * 1
    q = y / (y * 2)
    q.sum().backward()


def overflow_of_exp(w):
    e = w.exp()
    d = e - e
    d.sum().backward()


def masked_row(w):
    s = w.masked_fill(torch.tensor([[True, True], [False, True]]), -INF)
    p = s.softmax(1)
    p.square().sum().backward()


def empty_mean(w):
    w[w > 5].mean().backward()


def one_number(w):
    w[:1].std().backward()


def root_of_negative(w):
    (w ** (1 / 3)).sum().backward()


def half(w):
    (w * w).sum().backward()


def sure_of_the_wrong(w):
    p = torch.sigmoid(w)
    (1 - p).log().mean().backward()


@pytest.mark.parametrize(
    ("step", "w", "where", "calculation", "number"),
    [
        (log_of_negative, leaf(2.0, -1.2), "bad", "log(-1.2) is nan.", "NaN"),
        (zero_by_zero, leaf(0.0, 1.0), "q", "0 / 0 is nan.", "NaN"),
        (overflow_of_exp, leaf(1.0, 200.0), "e", "exp(200) is inf: the largest float32 is 3.4e+38.", "infinity"),
        (masked_row, leaf([1.0, 2.0], [3.0, 4.0]), "p", "fully masked", "NaN"),
        (empty_mean, leaf(1.0, 2.0), "J", "The mean of too few numbers is 0 / 0.", "NaN"),
        (one_number, leaf(1.0, 2.0), "J", "The std of too few numbers is 0 / 0.", "NaN"),
        (root_of_negative, leaf(-8.0, 1.0), "", "pow(-8, 0.3333) is nan.", "NaN"),
        (
            half,
            leaf(300.0, 1.0, dtype=torch.float16),
            "",
            "300 * 300 is inf: the largest float16 is 6.55e+04.",
            "infinity",
        ),
        (sure_of_the_wrong, leaf(200.0, -3.0), "", "log(0) is -inf.", "infinity"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_origin_is_named_with_its_calculation_and_line(step, w, where, calculation, number):
    (finding,) = forward(nonfinite_in(lambda: step(w)))
    assert calculation in lines(finding)
    assert number in finding.text[0]
    assert finding.severity == "error"
    assert finding.place.file == __file__
    assert where in finding.where
    assert "PyTorch raises no error" in lines(finding)


def test_what_merely_passes_it_on_is_no_origin():
    w = leaf(1.0, -1.0)

    def step():
        first = w.log()
        second = first * 2
        third = second + 1
        third.sum().backward()

    (finding,) = nonfinite_in(step)
    assert finding.where == "first"
    assert "Later operations pass it on: second, third." in lines(finding)
    assert not backward([finding])


def test_an_overflow_that_comes_back_as_log_of_zero_is_traced_to_its_origin():
    w = leaf(1.0, 100.0)

    def step():
        e = w.exp()
        p = e / e.sum()
        p[0].log().backward()

    first, second = forward(nonfinite_in(step))
    assert "exp(100) is inf" in lines(first)
    assert "log(0) is -inf." in lines(second)
    assert "this one reaches the loss" in second.text[0]


def test_a_root_at_zero_goes_wrong_in_the_backward_pass_alone():
    w = leaf(4.0, 0.0)

    def step():
        root = w.sqrt()
        root.sum().backward()

    (finding,) = nonfinite_in(step, w=w)
    assert finding.id == "non-finite-backward"
    assert finding.where == "dJ/dw"
    assert finding.evidence == ("dJ/dw[1] = inf, where w[1] = 0 and dJ/droot[1] = 1.",)


def test_where_does_not_stop_what_is_not_finite():
    w = leaf(-1.0, 4.0)

    def step():
        root = torch.where(w > 0, w.sqrt(), torch.zeros(()))
        root.sum().backward()

    found = nonfinite_in(step, w=w)
    assert "sqrt(-1) is nan." in lines(forward(found)[0])
    (finding,) = backward(found)
    assert "0 times infinity is NaN" in lines(finding)
    assert "w[0] = -1" in lines(finding)


@pytest.mark.parametrize("x", [NAN, INF])
def test_what_the_data_brought_in_is_not_blamed_on_an_operation(x):
    w, data = leaf(1.0, 2.0), torch.tensor([1.0, x])
    (finding,) = nonfinite_in(lambda: (w * data).sum().backward(), data=data)
    assert finding.text[0].startswith("data contains")
    assert finding.evidence[0] == "1 of 2 elements: data[1]."


def test_a_gradient_that_is_clipped_was_not_there_before_the_step():
    w = leaf(0.0, 4.0)

    def step():
        (w.sqrt() * 0).sum().backward()  # 0 times infinity
        torch.nn.utils.clip_grad_norm_([w], 1.0)

    (finding,) = nonfinite_in(step, w=w)
    assert finding.id == "non-finite-backward"


def test_what_reaches_no_gradient_is_reported_as_such():
    w = leaf(1.0, 2.0)

    def step():
        (w * 2).sum().backward()
        (w - 4).log()

    (finding,) = nonfinite_in(step, w=w)
    assert finding.severity == "warning"
    assert finding.evidence[-1] == "It reaches neither the loss of a backward pass nor a parameter's gradient."


@pytest.fixture
def fresh_memory_is_nan(monkeypatch):
    """What memory holds before anything is written to it is chance; here it is NaN."""
    empty = torch.empty

    def filled(*sizes, **options):
        made = empty(*sizes, **options)
        with torch._C._DisableTorchDispatch():  # memory has its numbers by itself: no operation writes them
            made.fill_(NAN)
        return made

    monkeypatch.setattr(torch, "empty", filled)


@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_what_a_new_parameter_held_before_it_was_initialised_is_no_origin():
    """A recording that sees a model made (of a script's first step) sees its memory before it is filled."""

    def step():
        model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        by_data, by_parts = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(3))
        by_data.data.normal_()
        with torch.no_grad():
            by_parts[:1].zero_()
            by_parts[1:].copy_(torch.ones(2))
        (model(torch.ones(2, 2)) * by_data * by_parts).sum().backward()

    assert nonfinite_in(step) == []


@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_a_parameter_that_was_never_initialised():
    def step():
        forgotten = nn.Parameter(torch.empty(3))
        (forgotten * 2).sum().backward()

    (finding,) = nonfinite_in(step)
    assert finding.text[0] == "forgotten contains NaN before the step."


def test_a_gradient_that_the_backward_pass_began_with():
    w = leaf(1.0, 2.0)
    (finding,) = backward(nonfinite_in(lambda: (w * 2).backward(torch.tensor([NAN, 1.0]))))
    assert "started from" in finding.text[0]


def test_finite_gradients_that_add_up_to_infinity():
    w = leaf(1e-4, dtype=torch.float16)

    def step():
        y = w * 1
        (y * 40000 + y * 40000).sum().backward()

    (finding,) = backward(nonfinite_in(step))
    assert "add up" in finding.text[0]
    assert "dJ/dy[0] = inf" in lines(finding)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda w: nn.functional.cross_entropy(w.expand(3, 2), torch.full((3,), -100)), "All 3 labels are -100"),
        (lambda w: nn.functional.mse_loss(w[w > 5], torch.zeros(0)), "has no elements: a mean of nothing is 0 / 0."),
    ],
)
def test_a_loss_of_nothing_says_so(loss, words):
    w = leaf(1.0, 2.0)
    finding = forward(nonfinite_in(lambda: loss(w).backward()))[0]
    assert words in lines(finding)
    assert finding.advice.startswith("The mean is over no elements")


def test_what_reaches_nothing_is_a_warning():
    w = leaf(1.0, 2.0)

    def step():
        (w.detach() / 0).sum()
        (w * 2).sum().backward()

    (finding,) = nonfinite_in(step)
    assert finding.severity == "warning"


def test_a_healthy_mask_and_a_healthy_step_have_no_such_finding():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4)
    mask = torch.full((3, 3), -INF).triu(1)

    def step():
        h = model(x)
        ((h @ h.T + mask).softmax(-1) @ h).square().mean().backward()

    assert nonfinite_in(step, mask=mask) == []
