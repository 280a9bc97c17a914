"""Which value depends on which: never is one said to be independent that is not."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chainrule
from chainrule.derivation.reaches import Reaches
from chainrule.execution.perturbation import Perturbation, moved, same
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
    except Exception as error:
        assert type(error).__name__ == "CannotRunError"
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
