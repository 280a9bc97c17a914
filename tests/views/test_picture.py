from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from chainrule.document import Document, Row, Tensor
from chainrule.views import written
from tests.views import hostile

SVG = "{http://www.w3.org/2000/svg}"


def tensor(*shape: int, entries: Any = None, role: Any = "value") -> Tensor:
    return Tensor("x", shape, "float32", role, entries, () if entries else (("norm", 2.5),))


def row(index: int, kind: Any, name: str, *inputs: int, **more: Any) -> Row:
    value = more.pop("value", tensor(2, 2, entries=(1.0, -2.0, 3.0, 0.5)))
    gradient = more.pop("gradient", tensor(2, 2, entries=(0.1, 0.0, 0.0, -0.0599812), role="gradient"))
    return Row(index, kind, name, name, "", more.pop("operation", ""), "", "", "", inputs, value, gradient)


def drawn(*rows: Row) -> ElementTree.Element:
    return ElementTree.fromstring(written(Document(("One step",), (), (), rows), ".svg"))


def example() -> tuple[Row, ...]:
    return (
        row(0, "data", "X", gradient=None),
        row(1, "parameter", "W"),
        row(2, "operation", "Z", 0, 1, operation="linear"),
        row(3, "loss", "J", 2, operation="sum", value=tensor(entries=(7.25,)), gradient=tensor(entries=(1.0,))),
    )


def vertex(root: ElementTree.Element, index: int) -> ElementTree.Element:
    (found,) = root.findall(f"{SVG}g[@data-row='{index}']")
    return found


def words(element: ElementTree.Element, kind: str) -> list[tuple[float, str]]:
    texts = [t for t in element.findall(f"{SVG}text") if t.get("class") == kind]
    return sorted((float(t.get("y", "nan")), t.text or "") for t in texts)


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(each) for each in re.findall(r"-?[\d.]+(?:e[+-]\d+)?", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_vertex_for_each_row_and_an_edge_for_each_input() -> None:
    root = drawn(*example())
    assert [g.get("class") for g in root.findall(f"{SVG}g")] == [
        "vertex data", "vertex parameter", "vertex operation", "vertex loss",
    ]  # fmt: skip
    assert len(root.findall(f"{SVG}path[@class='edge']")) == 3


def test_values_stand_above_the_line_and_gradients_below() -> None:
    element = vertex(drawn(*example()), 1)
    (stem,) = [p for p in element.findall(f"{SVG}path") if p.get("class") == "stem"]
    level = points((stem.get("d") or "").split("H")[0])[0][1]
    assert [text for _, text in words(element, "value")] == ["1  -2  ", "3   0.5"]
    assert [text for _, text in words(element, "gradient")] == ["0.1   0     ", "0    -0.0600"]
    assert max(y for y, _ in words(element, "value")) < level < min(y for y, _ in words(element, "gradient"))


def test_a_large_tensor_stands_as_shape_and_norm() -> None:
    element = vertex(drawn(row(0, "data", "X", value=tensor(768, 3072), gradient=None)), 0)
    assert [text for _, text in words(element, "value")] == ["768 x 3072", "norm 2.5"]
    assert words(element, "gradient") == []


def test_kinds_differ_in_shape() -> None:
    root = drawn(*example())
    shapes = {}
    for index, kind in enumerate(("data", "parameter", "operation", "loss")):
        element = vertex(root, index)
        shapes[kind] = [(e.tag.removeprefix(SVG), e.get("rx")) for e in element if e.get("class") in ("shape", "frame")]
    assert shapes["parameter"] == [("path", None)]
    assert float(shapes["data"][0][1] or 0) > float(shapes["operation"][0][1] or 0)
    assert len(shapes["loss"]) == 2


def test_edges_run_from_their_source_to_their_target() -> None:
    root = drawn(*example())
    edges = [points(path.get("d") or "") for path in root.findall(f"{SVG}path[@class='edge']")]
    boxes = {}
    for index in range(4):
        name = next(t for t in vertex(root, index).findall(f"{SVG}text") if t.get("class") == "name")
        boxes[index] = float(name.get("x", "nan")), float(name.get("y", "nan"))
    for (source, target), edge in zip([(0, 2), (1, 2), (2, 3)], edges, strict=True):
        assert abs(edge[0][1] - boxes[source][1]) < 20
        assert edge[0][0] > boxes[source][0]
        assert edge[-1][0] < boxes[target][0]


def test_it_tells_itself_to_a_screen_reader() -> None:
    root = drawn(*example())
    assert root.get("role") == "img"
    title, description = (root.find(f"{SVG}{name}") for name in ("title", "desc"))
    assert title is not None
    assert description is not None
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == "One step: the computational graph"
    assert "4 values (data 1, parameter 1, operation 1, loss 1)" in (description.text or "")
    assert "Z: operation linear" in (description.text or "")


def test_hues_follow_the_theme() -> None:
    assert "prefers-color-scheme:dark" in written(Document(("t",), (), (), example()), ".svg")


def test_nothing_to_draw_is_an_empty_picture() -> None:
    root = drawn()
    assert root.findall(f"{SVG}g") == []


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="no shape for a row of kind 'dream'"):
        drawn(row(0, "dream", "X"))


def test_a_long_chain_with_skips_is_laid_out() -> None:
    rows = []
    for index in range(1000):
        skip = (index - 7,) if index >= 7 and index % 5 == 0 else ()
        rows.append(row(index, "operation", f"v{index}", *((index - 1,) if index else ()), *skip))
    root = drawn(*rows)
    assert len(root.findall(f"{SVG}g")) == 1000


@pytest.mark.parametrize("name", hostile.NAMES)
def test_hostile_names_stay_text(name: str) -> None:
    root = ElementTree.fromstring(written(hostile.document(name), ".svg"))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "desc", "style", "defs", "marker", "path", "rect", "g", "text",
    }  # fmt: skip
    assert not any(key.startswith("on") or "href" in key for element in root.iter() for key in element.attrib)


def test_it_needs_no_torch() -> None:
    code = "import sys; from chainrule.views import by_suffix; by_suffix(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
