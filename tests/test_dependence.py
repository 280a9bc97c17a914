"""Which value depends on which: never is one said to be independent that is not."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule.derivation.reaches import Reaches
from chainrule.errors import DependenceError, MissingError, RecordingError, RequestError
from chainrule.execution.experiment import CannotRunError
from chainrule.execution.perturbation import Perturbation, moved, same
from chainrule.graph.trees import tensors_in
from chainrule.rules import Rule, registered
from chainrule.rules.facts import facts_of
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import OF_TRANSFORMERS

FOLDER = Path(__file__).parent


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- against brute force ----------------------------------------------------------------------------------------------


def leaks(graph: Any, sizes: range, seen: Counter[str], draws: int = 2) -> Iterator[str]:
    """Elements that change where one position of a leaf is moved, and are said not to depend on it."""
    generator = torch.Generator().manual_seed(1)
    used = {ref.value for each in graph.operations for ref in refs_in(each.arguments)}
    for leaf in (each for each in graph.values if each.operation is None and each.index in used):
        if (
            leaf.data is None
            or leaf.data.layout != torch.strided
            or (leaf.kind == "parameter" and leaf.data.numel() > 64)
        ):
            continue
        for axis in (axis for axis, size in enumerate(leaf.shape) if size in sizes):
            walk, part = Reaches(graph, leaf.index, axis), Perturbation(graph, leaf.index)
            base = attempt(part, leaf.data)
            for position in range(leaf.shape[axis]):
                for draw in range(draws):
                    given = moved(leaf.data, axis, position, draw, generator)
                    result = attempt(part, given) if given is not None else None
                    for value in (base or {}) if result else ():
                        seen["compared"] += 1
                        if value != leaf.index and escapes(graph, walk, value, base[value], result[value], position):
                            name = graph.operations[graph.values[value].operation].name
                            yield f"{name}: {graph.values[value].name} on {leaf.name}, axis {axis}, position {position}"


def refs_in(tree: Any) -> list[Any]:
    from chainrule.graph.graph import Ref
    from chainrule.graph.trees import leaves

    return leaves(tree, Ref)


def attempt(part: Perturbation, data: Tensor) -> dict[int, Tensor] | None:
    """What runs on these numbers; None where they are not allowed (an index, a matrix that is singular)."""
    try:
        return part.run(data)
    except CannotRunError:
        return None


def escapes(graph: Any, walk: Reaches, value: int, base: Tensor, result: Tensor, position: int) -> bool:
    if base.layout != torch.strided or is_unwritten(graph, value):
        return False
    if base.shape != result.shape or (base.isfinite() & ~result.isfinite()).any():
        return False  # what is claimed is for finite numbers
    changed, bounds = ~same(base, result), walk.of(value)
    if bounds is None:
        return bool(changed.any())
    allowed = (bounds.last > position) & (walk.size - bounds.first <= position)
    return bool((changed & ~allowed.expand(changed.shape)).any())


def is_unwritten(graph: Any, value: int) -> bool:
    """Whether a value is memory that nothing was written to yet, whose numbers are arbitrary."""
    known = graph.values[value]
    if known.operation is None:
        return False
    facts = facts_of(graph.operations[known.operation].name)
    return known.slot in facts.unwritten or (facts.detaches and is_unwritten(graph, graph.operands(value)[0]))


def sampled(rule: Rule) -> Iterator[tuple[str, Any]]:
    """The recordings of a rule's samples."""
    if str(FOLDER / "rules") not in sys.path:
        sys.path.insert(0, str(FOLDER / "rules"))
    from test_every_rule import recorded

    for sample in rule.samples():
        recording = recorded(sample, torch.float64)
        if recording is not None:
            yield f"{rule.name} {sample.note}", recording


def wrong_of_rule(rule: Rule, seen: Counter[str]) -> list[str]:
    return [
        f"{note}: {each}"
        for note, recording in sampled(rule)
        if not any("sparse" in op.name for op in recording.graph.operations)
        for each in leaks(recording.graph, range(2, 6), seen)
    ]


RULES = list(registered())
FAST = {"mm", "convolution", "native_layer_norm", "flash_attention_for_cpu", "index", "cumsum", "softmax", "sort"}


@pytest.mark.parametrize("name", sorted(FAST))
def test_some_operations_against_moving_each_position(name: str) -> None:
    seen: Counter[str] = Counter()
    wrong = [each for rule in RULES if rule.name == name for each in wrong_of_rule(rule, seen)]
    assert not wrong, wrong
    assert seen["compared"]


@pytest.mark.slow
def test_all_operations_against_moving_each_position() -> None:
    seen: Counter[str] = Counter()
    wrong = [each for rule in RULES for each in wrong_of_rule(rule, seen)]
    assert not wrong, "\n".join(dict.fromkeys(wrong))
    assert seen["compared"] > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_model_against_moving_each_position(name: str) -> None:
    if name in OF_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{name} is a model of transformers, which is not installed here.")
    model, loss = ZOO[name]()
    with chainrule.record() as recording:
        loss(model).backward()
    seen: Counter[str] = Counter()
    wrong = list(leaks(recording.graph, range(2, 9), seen, draws=1))
    assert not wrong, "\n".join(wrong[:20])
    assert seen["compared"]


@pytest.mark.slow
@pytest.mark.sweep
def test_the_database_of_operations_against_moving_each_position() -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    seen: Counter[str] = Counter()
    wrong = []
    for info, dtype in ((info, each) for info in op_db for each in (torch.float64, torch.int64) if each in info.dtypes):
        try:
            samples = list(islice(info.sample_inputs("cpu", dtype), 6))
        except (RuntimeError, TypeError, ValueError):
            continue  # of an operation that this build has not
        for sample in samples:
            tensors = tensors_in((sample.input, sample.args, sample.kwargs))
            if not tensors or any(each.numel() > 150 or each.layout != torch.strided for each in tensors):
                continue
            try:
                with chainrule.record(namespace={}) as recording:
                    info.op(sample.input, *sample.args, **sample.kwargs)
            except (RuntimeError, NotImplementedError):
                continue
            wrong += [f"{info.name}: {each}" for each in leaks(recording.graph, range(2, 6), seen)]
    assert not wrong, "\n".join(wrong[:20])
    assert seen["compared"] > 100_000


def test_a_bound_that_is_too_narrow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 4)
    with chainrule.record({"x": x}) as recording:
        x.sort(1)
    assert not list(leaks(recording.graph, range(2, 6), Counter()))
    monkeypatch.setattr("chainrule.derivation.reaches.carried", lambda op, labels, function: [labels["self"]] * 2)
    assert list(leaks(recording.graph, range(2, 6), Counter()))


# -- what a user asks -------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One head of attention, with a mask or without."""

    def __init__(self, mask: str = "") -> None:
        super().__init__()
        self.qkv, self.mask = nn.Linear(4, 12), mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.mask == "infinite":
            scores = scores.masked_fill(later, -torch.inf)
        if self.mask == "large":
            scores = scores - 1e4 * later
        return scores.softmax(-1) @ v


def asked(model: nn.Module, x: Tensor) -> chainrule.Recording:
    with chainrule.record({"x": x}) as recording:
        y = model(x)
        y.sum().backward()
    return recording


def test_a_relation_that_structure_shows() -> None:
    recording = asked(Attention("infinite"), torch.randn(2, 5, 4))
    found = recording.depends("y", "x")
    assert found
    batch, positions, features = found.axes
    assert (batch.relation, batch.along, batch.how) == ("own", 0, "structure")
    assert (positions.relation, positions.along, positions.how) == ("earlier", 1, "structure")
    assert (features.relation, features.how, features.size) == ("any", "measured", 4)
    assert features.witness is not None
    assert "axis 1 of x, 5 positions: on its own and earlier positions alone, axis 1 of y. Structure, for all" in str(
        found
    )


def test_a_relation_that_is_measured() -> None:
    recording = asked(Attention("large"), torch.randn(2, 5, 4))
    positions = recording.depends("y", "x").axes[1]
    assert (positions.relation, positions.how, positions.moved) == ("earlier", "measured", 5)
    assert "Measured, for these numbers" in positions.words


def test_a_relation_to_any_position_has_a_witness_and_a_path() -> None:
    x = torch.randn(2, 5, 4)
    recording = asked(Attention(), x)
    found = recording.depends("y", "x")
    assert found.axes[1].relation == "any"
    assert found.mixes.startswith("matmul (test_dependence.py:")
    assert found.path[0] == "x"
    assert found.path[-1].startswith("matmul")
    position, place = found.axes[1].witness
    other = x.clone()
    other[:, position] += 1
    model = Attention()
    model.load_state_dict({name: each.before for name, each in asked_parameters(recording).items()})
    assert not same(model(x), model(other))[place]


def asked_parameters(recording: chainrule.Recording) -> dict[str, Any]:
    return {name.removeprefix("model."): each for name, each in recording.parameters.items()}


def test_what_does_not_depend() -> None:
    model = Attention()
    other = torch.randn(2, 5, 4)
    x = torch.randn(2, 5, 4)
    with chainrule.record({"x": x, "other": other}) as recording:
        y = model(x)
        loss = F.mse_loss(y, other)
        loss.backward()
    found = recording.depends("y", "other")
    assert not found
    assert "No operation leads from one to the other" in str(found)
    assert recording.depends("loss", "other")
    with pytest.raises(MissingError, match="There is no value named"):
        recording.depends("z", "x")


def test_a_number_that_python_read_is_listed() -> None:
    x, z = torch.randn(3, 2), torch.randn(3, 2)
    with chainrule.record({"x": x, "z": z}) as recording:
        y = z * x.abs().max().item()
        y.sum()
    found = recording.depends("y", "x")
    assert not found
    assert found.open
    assert "whatever the numbers" not in str(found)
    assert "Python read a number of it (test_dependence.py:" in str(found)


def test_a_gradient_that_comes_back_as_data() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    with chainrule.record({"x": x}) as recording:
        x.prod().backward()
        y = x.grad * 2
    found = recording.depends("y", "x")
    assert found
    assert {each.relation for each in found.axes} == {"any"}
    with chainrule.record({"x": x}) as recording:
        gradient = torch.autograd.grad(x.prod(), x)[0]
        y = gradient.sign()
    assert y is not None
    assert {each.relation for each in recording.depends("y", "x").axes} == {"any"}


def test_a_parameter_after_an_update() -> None:
    x, z, model = torch.randn(3, 2), torch.randn(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record({"x": x, "z": z, "model": model}) as recording:
        model(x).sum().backward()
        optimizer.step()
        y = model(z)
    assert y is not None
    assert recording.depends("y", "x")


def test_memory_that_is_written_to() -> None:
    x = torch.randn(3, 4)
    with chainrule.record({"x": x}) as recording:
        rows = torch.zeros(3, 4)
        view = rows[1]
        rows[:] = x.flip(0)
        y = view * 2
        rows[0] = 0.0
        z = rows + 0
    assert y is not None
    assert z is not None
    assert recording.depends("y", "x").axes[0].relation == "any"
    assert recording.depends("z", "x").axes[1].relation == "own"
    assert recording.depends("z", "x").axes[0].relation == "one"


def test_a_recording_of_statistics_alone_says_what_structure_says() -> None:
    x = torch.randn(2, 5, 4)
    with chainrule.record({"x": x}, keep="statistics") as recording:
        y = Attention()(x.repeat(1, 1, 1))
        y.sum().backward()
    assert recording.depends("y", "x").axes[0].relation == "own"


# -- assertions -------------------------------------------------------------------------------------------------------


def test_samples_that_are_independent() -> None:
    x = torch.randn(4, 5, 4)
    assert "structure" in chainrule.assert_independent(Attention(), x)
    assert "structure" in chainrule.assert_independent(nn.Sequential(nn.Dropout(), nn.Linear(4, 2)), x, axis=1)
    norm = nn.BatchNorm1d(5)
    before = norm.running_mean.clone()
    with pytest.raises(DependenceError, match=r"position \d of the result along axis 0 depends on position \d of the"):
        chainrule.assert_independent(norm, x)
    assert torch.equal(norm.running_mean, before)
    assert chainrule.assert_independent(norm.eval(), x)


def test_positions_that_are_causal() -> None:
    x = torch.randn(2, 5, 4)
    assert "structure" in chainrule.assert_causal(Attention("infinite"), x)
    assert "measured" in chainrule.assert_causal(Attention("large"), x)
    with pytest.raises(AssertionError) as raised:
        chainrule.assert_causal(Attention(), x)
    message = str(raised.value)
    assert "first mixed by: matmul (test_dependence.py:" in message
    assert "path: x -> " in message
    ids = torch.randint(7, (2, 5))
    assert chainrule.assert_causal(nn.Sequential(nn.Embedding(7, 4), Attention("infinite")), ids)


@pytest.mark.parametrize(
    "leak",
    [
        lambda x: x * float(x.detach().abs().max()),
        lambda x: torch.from_numpy(x.detach().numpy()[::-1].copy()),
        lambda x: torch.tensor(x.tolist()).cumsum(0),
        lambda x: x.flip(0),
        lambda x: x.roll(1, 0),
        lambda x: x.view(5, 4, 4).transpose(0, 1),
        lambda x: x - x.detach().mean(0),
        lambda x: x * (x.argmax(0) == 2),
        lambda x: x[x[:, 0, 0].argsort()],
    ],
)
def test_no_leak_goes_unseen(leak: Any) -> None:
    with pytest.raises(DependenceError):
        chainrule.assert_independent(leak, torch.randn(4, 5, 4))


def test_what_cannot_be_asked() -> None:
    x = torch.randn(4, 5, 4)
    with pytest.raises(RequestError, match="nothing to test"):
        chainrule.assert_independent(Attention(), x[:1])
    with pytest.raises(RequestError, match="without the 4 positions"):
        chainrule.assert_independent(lambda x: x.sum(0), x)
    with pytest.raises(RequestError, match="axis=3"):
        chainrule.assert_causal(Attention(), x, axis=3)
    with pytest.raises(RequestError, match="returned no tensor"):
        chainrule.assert_causal(lambda x: None, x)
    with pytest.raises(RecordingError, match="other numbers each time"):
        chainrule.assert_independent(lambda x: x.mean() * x + int.from_bytes(os.urandom(3), "big"), x)


def test_names_of_a_model_do_not_matter() -> None:
    class Names(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(0)
            result = x * 2
            x = result + 1
            return x * 2

    with pytest.raises(DependenceError, match="first mixed by: mean"):
        chainrule.assert_independent(Names(), torch.randn(3, 2))
    with pytest.raises(DependenceError, match="first mixed by: mean"):
        chainrule.assert_causal(Names(), torch.randn(3, 2), axis=0)
