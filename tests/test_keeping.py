"""How much is kept: all, figures, chosen modules, up to a budget; and what is borrowed of the user's own tensors."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_hooks

import chainrule
from chainrule.errors import RecordingError
from chainrule.graph import statistics
from chainrule.graph.statistics import EXPONENTS, Statistics, measure
from tests.zoo.models import ZOO

LARGE = 20_000  # elements of a float32 tensor that is not small
MUCH = 2**23  # bytes of results that a recording holds at most before it frees those that nothing needs


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.capture.retention.SMALL", 0)


class Wide(nn.Module):
    """Two layers whose activations are large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 500), nn.Linear(500, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def wide_step(**keep: Any) -> tuple[chainrule.Recording, Wide, Tensor]:
    torch.manual_seed(3)
    model, x = Wide(), torch.randn(100, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with chainrule.record(**keep) as recording:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    return recording, model, loss


def zoo_step(name: str, keep: str) -> Any:
    torch.manual_seed(0)
    model, loss = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    with chainrule.record(keep=keep) as recording:
        loss(model).backward()
        optimizer.step()
    return recording.graph


def close(found: Statistics, true: Statistics) -> None:
    assert found.elements == true.elements
    assert (found.zeros, found.not_finite) == (true.zeros, true.not_finite)
    for name in ("norm", "mean", "std", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-4, abs=1e-6 * (1 + true.norm))


# -- statistics alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gru", "resnet", "gan", "mixtral", "vae"])
@pytest.mark.usefixtures("nothing_is_small")
def test_the_facts_are_the_same_but_for_the_numbers(name: str) -> None:
    whole, figures = zoo_step(name, "all"), zoo_step(name, "statistics")
    assert [(o.name, o.outputs, o.call, o.node) for o in figures.operations] == [
        (o.name, o.outputs, o.call, o.node) for o in whole.operations
    ]
    assert [(n.name, n.edges, n.outputs, n.leaf) for n in figures.nodes] == [
        (n.name, n.edges, n.outputs, n.leaf) for n in whole.nodes
    ]
    measured = 0
    for one, other in zip(whole.values, figures.values, strict=True):
        for fact in ("names", "kind", "shape", "dtype", "device", "requires_grad", "node", "has_gradient"):
            assert getattr(one, fact) == getattr(other, fact), (one.names, fact)
        made_empty = any(word in name for name in one.names for word in ("empty", "inv_perm", "mkldnn"))
        if other.data is None and other.statistics is not None and not made_empty:  # empty memory holds anything
            close(other.statistics, Statistics.of(one.data))
            measured += 1
        if one.grad is not None and other.grad is None and other.grad_statistics is not None:
            close(other.gradient.statistics, Statistics.of(one.grad))
            measured += 1
    assert measured > len(whole.nodes)
    for path, parameter in whole.parameters.items():
        other = figures.parameters[path]
        assert (other.shape, other.has_gradient) == (parameter.shape, parameter.has_gradient)
        close(other.start.statistics, Statistics.of(parameter.before))
        close(other.end.statistics, Statistics.of(parameter.after))
        if parameter.grad is not None:
            close(other.gradient.statistics, Statistics.of(parameter.grad))


def test_small_tensors_are_kept_and_large_ones_are_not() -> None:
    recording, _, loss = wide_step(keep="statistics")
    hidden, output = recording["first"], recording["second"]
    assert hidden.data is None
    assert hidden.has_gradient
    assert hidden.grad is None
    assert hidden.statistics.elements == hidden.grad_statistics.elements == 50_000
    assert output.data is not None
    assert recording.loss == loss.item()
    assert not recording.is_whole
    weight = recording.parameters["first.weight"]
    assert weight.before is None
    assert weight.shape == (500, 40)
    assert recording.parameters["first.bias"].before is not None


def test_updates_are_measured() -> None:
    whole, figures = wide_step(keep="all")[0], wide_step(keep="statistics")[0]
    for one, other in zip(whole.graph.updates[0].parameters, figures.graph.updates[0].parameters, strict=True):
        true = Statistics.of(one.after - one.before)
        assert other.update_statistics.norm == pytest.approx(true.norm, rel=0.02)
        assert other.update_statistics.elements == true.elements
        if other.start.data is None:
            close(other.start.statistics, Statistics.of(one.before))
            close(other.gradient.statistics, Statistics.of(one.grad))


def test_a_gradient_is_measured_as_backward_left_it_and_as_the_optimizer_met_it() -> None:
    model, x = Wide(), torch.randn(100, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record(keep="statistics") as recording:
        model(x).square().mean().backward()
        before = model.first.weight.grad.norm().item()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        after = model.first.weight.grad.norm().item()
        optimizer.step()
    assert recording.parameters["first.weight"].gradient.statistics.norm == pytest.approx(before, rel=1e-5)
    update = next(u for u in recording.graph.updates[0].parameters if u.name == "first.weight")
    assert update.gradient.statistics.norm == pytest.approx(after, rel=1e-5)


def test_what_is_not_kept_is_freed_while_the_step_runs() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.randn(MUCH // 4 + 1, requires_grad=True)
        y = x * 2.0  # its way back does not need the result
        z = y * 3.0
        gone = weakref.ref(y)
        del y
        z + 1.0
        gc.collect()
        assert gone() is None
        z.sum().backward()
    assert recording["y"].statistics.norm == pytest.approx(2 * Statistics.of(x).norm, rel=1e-5)


# -- patterns and budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["second", "sec*"])
def test_a_pattern_keeps_a_module_and_its_parameters(pattern: str) -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(40, 300))
    model.add_module("act", nn.Tanh())
    model.add_module("second", nn.Linear(300, 300))
    with chainrule.record(keep=[pattern]) as recording:
        model(torch.randn(100, 40)).sum().backward()
    assert recording["first"].data is None
    assert recording["first"].grad is None
    assert recording["act"].data is not None  # what the module takes
    assert recording["act"].grad is not None
    assert recording["second"].data is not None
    assert recording["second"].grad is not None
    assert recording.parameters["second.weight"].before is not None
    assert recording.parameters["first.weight"].before is None


class Layers(nn.Module):
    """`layer` gets what `before` makes of the input, or of a parameter, and gives what it makes to `after`."""

    def __init__(self, before: Any, layer: nn.Module, after: Any) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(48, 48), layer, nn.Linear(48, 3)
        self.given = nn.Parameter(torch.randn(480, 48))
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.layer(self.before(self.first(x), self.given))))


class Overwriting(nn.Module):
    """Its first operation overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2.0)).mul_(0.5)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * upstream


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Function.apply(x)


def image(x: Tensor, given: Tensor) -> Tensor:
    return torch.relu(x).view(-1, 3, 16, 48)


def from_image(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True).flatten(0, -2)


def long_ago(x: Tensor, given: Tensor) -> Tensor:
    """What the layer is given was let go of megabytes before."""
    y = torch.tanh(x)
    torch.ones(MUCH).mul(2.0).mul(3.0)
    return y


def squashed(x: Tensor, given: Tensor) -> Tensor:
    return torch.tanh(x)


def linear(features: int = 48) -> nn.Module:
    return nn.Linear(features, features)


LAYERS: dict[str, tuple[Any, Any, Any]] = {
    "linear": (squashed, linear, torch.tanh),
    # float64, as the float32 kernel's sums over 7,680 places round to about what the proof allows.
    "convolution": (
        lambda x, given: image(x, given).double(),
        lambda: nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64),
        lambda x: from_image(x).float(),
    ),
    "norm": (image, lambda: nn.BatchNorm2d(3), from_image),
    "a part": (lambda x, given: torch.tanh(x)[8:400], linear, torch.relu_),
    "transposed": (lambda x, given: torch.tanh(x).t(), lambda: linear(480), lambda x: x[:, :48].relu_()),
    "in place before": (lambda x, given: x.mul(3.0).mul_(2.0).relu_(), linear, torch.relu_),
    "in place afterwards": (lambda x, given: x * given, linear, lambda x: x.mul_(3.0).add_(1.0).sigmoid_()),
    "in place inside": (lambda x, given: x * 3.0, Overwriting, torch.relu_),
    "in place inside, on a part": (lambda x, given: (x * 3.0)[32:], Overwriting, torch.relu_),
    "several": (squashed, lambda: nn.Sequential(nn.Linear(48, 99), nn.ReLU(True), nn.Linear(99, 48)), torch.relu_),
    "attention": (
        lambda x, given: torch.tanh(x).view(20, 24, 48),
        lambda: nn.TransformerEncoderLayer(48, 4, 64, batch_first=True),
        from_image,
    ),
    "no parameters": (squashed, nn.GELU, torch.relu_),
    "a view of it": (squashed, lambda: nn.Flatten(0), lambda x: x.sin().view(480, 48)),
    "function": (squashed, Custom, torch.relu_),
    "let go of": (long_ago, linear, torch.relu_),
    "a parameter": (lambda x, given: given, linear, torch.relu_),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_single_layer_is_kept_with_all_that_it_takes_and_gives(kind: str) -> None:
    before, layer, after = LAYERS[kind]
    steps = []
    for keep in (["layer"], "all"):
        torch.manual_seed(3)
        model, x = Layers(before, layer(), after), torch.randn(480, 48)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with chainrule.record(keep=keep) as recording:  # type: ignore[arg-type]
            model(x).square().mean().backward()
            optimizer.step()
        steps.append(recording)
    found, whole = steps
    assert not found.is_whole
    for one, other in zip(found.graph.values, whole.graph.values, strict=True):
        for mine, true in ((one.data, other.data), (one.grad, other.grad)):
            empty = any("empty" in name for name in one.names)  # its memory holds anything
            assert mine is None or empty or torch.equal(mine, true), one.names
    assert [(n.name, n.operation) for n in found.nodes] == [(n.name, n.operation) for n in whole.nodes]
    inside = {n.index for n in found.nodes if n.call is not None and "layer" in found.graph.calls[n.call].module}
    verdicts, true = (
        {row.node.index: row.verdict for row in each.verify(only="layer.*").rows if row.node.index in inside}
        for each in steps
    )
    if kind == "in place inside, on a part":  # what is written into is the whole, which the layer does not take
        assert verdicts.pop(min(verdicts)) == "not checked"
        assert true.pop(min(true)) == "agrees"
    assert verdicts == true
    assert set(true.values()) == {"agrees"}
    for name, parameter in whole.parameters.items():
        if name.startswith("layer"):
            index = (0,) * len(parameter.shape)
            assert found.why(name, index).value == whole.why(name, index).value


def test_what_a_layer_takes_counts_as_what_is_kept() -> None:
    torch.manual_seed(3)
    model, x = Layers(squashed, linear(), torch.relu_), torch.randn(480, 48)
    with chainrule.record(keep=["layer"], memory=480 * 48 * 4) as recording:
        model(x).sum().backward()
    made = [value for value in recording.graph.values if value.shape == (480, 48) and value.kind == "result"]
    assert sum(value.data is not None for value in made) == 1


def test_a_pattern_that_names_nothing_is_said() -> None:
    recording, _, _ = wide_step(keep=["second", "secnod"])
    (note,) = recording.graph.notes
    assert note.startswith("keep=['secnod'] named no module that ran, so it kept nothing")
    assert "secnod" in str(recording)


def test_beyond_the_budget_figures_are_kept() -> None:
    size = LARGE * 4
    x = torch.randn(LARGE, requires_grad=True)
    with chainrule.record(memory=3 * size + 1) as recording:
        y = x
        for _ in range(6):
            y = y.exp() * 0.1
        y.sum().backward()
    made = [value for value in recording.graph.values if value.operation is not None and value.shape == (LARGE,)]
    kept = [value.data is not None for value in made]
    assert kept == [True] * 3 + [False] * (len(made) - 3)
    assert all(value.statistics is not None for value in made[3:])


def test_by_default_a_small_step_is_kept_whole() -> None:
    assert wide_step()[0].is_whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": "everything"}, 'record(keep=\'everything\'): say "all", "statistics", or a list of patterns'),
        ({"keep": [1]}, "record(keep=[1])"),
        ({"memory": -1}, "record(memory=-1): the memory is a number of bytes"),
        ({"memory": "2GB"}, "record(memory='2GB')"),
    ],
)
def test_what_is_no_measure_is_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError) as raised:
        chainrule.record(**arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_device_without_memory_left_does_not_end_the_step(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(tensor: Tensor) -> Any:
        raise error("no memory left")

    monkeypatch.setattr(
        "chainrule.capture.retention.in_place", lambda tensor: None
    )  # as on a device, where figures take memory
    monkeypatch.setattr("chainrule.capture.retention.measure", measure)
    recording, _, loss = wide_step(keep="statistics")
    monkeypatch.undo()
    assert torch.equal(loss, wide_step(keep="all")[2])
    assert recording["first"].data is None
    assert recording["first"].statistics is None
    assert recording["first"].has_gradient
    assert "not kept" in str(recording)
    assert len(recording.document().sections) > 2


def test_figures_of_several_tensors_are_fetched_together() -> None:
    tensors = [torch.linspace(-1, 2, 100 + n, dtype=t) for n in range(3) for t in (torch.float32, torch.float64)]
    there = [statistics.Measured(statistics._on_device(each), statistics._sample(each)) for each in tensors]
    statistics._gather(there)
    for tensor, found in zip(tensors, there, strict=True):
        assert isinstance(found.row, tuple)
        close(found.read(), Statistics.of(tensor))
        assert found.read().magnitudes == Statistics.of(tensor, magnitudes=True).magnitudes


def test_figures_are_of_what_an_operation_gave_whatever_becomes_of_its_memory() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.ones(LARGE)
        first = x * 2.0
        first.data = torch.zeros(LARGE)
        second = x * 3.0
        second.numpy()[:] = 0.0
    assert recording["first"].statistics.mean == 2.0
    assert recording["second"].statistics.mean == 3.0


def test_a_view_of_what_was_overwritten_in_inference_mode_has_figures_of_its_own() -> None:
    with torch.inference_mode(), chainrule.record(keep="statistics") as recording:
        made = torch.ones(LARGE) * 2.0
        made.add_(1.0)
        seen = made.view(-1)
        seen * 1.0
    assert recording["seen"].statistics.mean == 3.0


def test_a_step_on_the_meta_device_has_no_figures() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.empty(LARGE, device="meta", requires_grad=True)
        made = x * 2.0
        made.sum().backward()
    assert recording["made"].statistics is None
    assert "not kept" in str(recording)


# -- what is borrowed -------------------------------------------------------------------------------------------------


def test_a_large_parameter_is_not_copied_until_the_recording_is_read() -> None:
    weight = torch.randn(LARGE, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    assert not recording._tape.copies
    assert torch.equal(recording["weight"].data, weight)
    assert recording["weight"].data.data_ptr() != weight.data_ptr()


def test_an_optimizer_that_steps_before_the_recording_is_read_has_it_copied_first() -> None:
    model, x = Wide(), torch.randn(100, 40)
    before = model.first.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record() as recording:
        model(x).sum().backward()
    gradient = model.first.weight.grad.clone()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(recording.parameters["first.weight"].before, before)
    assert torch.equal(recording.parameters["first.weight"].grad, gradient)
    assert recording.verify().passed


@pytest.mark.parametrize("end", ["read", "dropped", "stepped"])
def test_the_hook_that_waits_for_an_optimizer_goes(end: str) -> None:
    model = Wide()
    before = dict(optimizer_hooks._global_optimizer_pre_hooks)
    with chainrule.record() as recording:
        model(torch.randn(100, 40)).sum().backward()
    assert len(optimizer_hooks._global_optimizer_pre_hooks) == len(before) + 1
    if end == "read":
        assert recording.graph
    elif end == "stepped":
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        del recording
    else:
        del recording
    assert dict(optimizer_hooks._global_optimizer_pre_hooks) == before


@pytest.mark.parametrize("through", ["itself", "data"])
def test_what_was_overwritten_unseen_is_lost_and_said_to_be(through: str) -> None:
    weight = torch.randn(LARGE, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    with torch.no_grad():
        (weight if through == "itself" else weight.data).sub_(0.1)
    value = recording["weight"]
    assert value.data is None
    assert value.statistics is None
    assert recording.parameters["weight"].before is None
    assert recording.parameters["weight"].has_gradient
    assert any("not kept" in row.reason for row in recording.verify().rows)
    assert "not kept" in str(recording)


def test_a_recording_freed_while_an_optimizer_steps_does_not_disturb_it() -> None:
    model = Wide()
    recordings = []
    for _ in range(3):
        with chainrule.record() as recording:
            model(torch.randn(100, 40)).sum().backward()
        recordings.append(recording)
    del recording
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: recordings.clear())
    optimizer.step()
    with chainrule.record():
        optimizer.step()


def test_a_small_parameter_may_be_overwritten_at_once() -> None:
    weight = torch.randn(10, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    before = weight.detach().clone()
    with torch.no_grad():
        weight.sub_(weight.grad)
    assert torch.equal(recording["weight"].data, before)


# -- statistics by themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.linspace(-3, 5, 1001),
        torch.linspace(-3, 5, 5000, dtype=torch.float64).reshape(50, 100).t(),
        torch.linspace(-3, 5, 200_000)[::2],
        torch.linspace(-3, 5, 300).bfloat16(),
        torch.arange(-5, 20),
        torch.tensor([True, False, True]),
        torch.complex(torch.linspace(0, 1, 20), torch.linspace(1, 0, 20)),
        torch.full((5,), 1e30),
        torch.full((5,), 1e-30),
        torch.tensor(2.5),
        torch.zeros(4000),
    ],
)
def test_figures_are_those_of_the_numbers(tensor: Tensor) -> None:
    wide = (tensor.abs() if tensor.is_complex() else tensor).double().reshape(-1)
    found = Statistics.of(tensor)
    assert found.elements == wide.numel()
    assert found.norm == pytest.approx(wide.norm().item(), rel=1e-5)
    assert found.mean == pytest.approx(wide.mean().item(), rel=1e-5, abs=1e-6)
    assert found.std == pytest.approx(wide.std(correction=0).item(), rel=1e-3, abs=1e-3 * wide.abs().max().item())
    assert (found.low, found.high) == pytest.approx((wide.min().item(), wide.max().item()), rel=1e-6)
    assert found.zeros == (wide == 0).sum()
    assert found.not_finite == 0


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    found = Statistics.of(torch.tensor([3.0, float("nan"), -4.0, float("inf"), 0.0]))
    assert (found.elements, found.not_finite, found.zeros) == (5, 2, 1)
    assert found.norm == 5.0
    assert (found.low, found.high) == (-4.0, 3.0)
    assert Statistics.of(torch.full((3,), float("nan"))).not_finite == 3
    assert Statistics.of(torch.empty(0)).elements == 0


def test_magnitudes_count_by_powers_of_two() -> None:
    found = Statistics.of(torch.tensor([0.0, 1.0, 1.5, -17.0, 2.0**-40, 2.0**60]), magnitudes=True)
    bins = dict(zip(EXPONENTS, found.magnitudes, strict=True))
    assert bins[0] == 2
    assert bins[4] == 1
    assert bins[-32] == 1
    assert bins[28] == 1
    assert sum(found.magnitudes) == 5


def test_figures_of_another_device_are_the_same() -> None:
    for tensor in (torch.linspace(-3, 5, 1001), torch.tensor([3.0, float("nan"), -4.0]), torch.arange(5)):
        found, true = (
            statistics.of_row(tuple(statistics._on_device(statistics._flat(tensor)).tolist())),
            Statistics.of(tensor),
        )
        assert (found.elements, found.zeros, found.not_finite) == (true.elements, true.zeros, true.not_finite)
        assert math.isclose(found.norm, true.norm, rel_tol=1e-5)
        assert math.isclose(found.mean, true.mean, rel_tol=1e-4, abs_tol=1e-6)


def test_measuring_leaves_no_trace() -> None:
    tensor = torch.randn(LARGE, requires_grad=True)
    version = tensor._version
    measure(tensor)
    assert tensor._version == version
    assert tensor.grad_fn is None
