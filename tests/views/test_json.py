from __future__ import annotations

import json
import math
import random
import re
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import chainrule
from chainrule import document as doc
from chainrule.errors import StorageError
from chainrule.examples import worked_example
from chainrule.views.json import BLOCKS, FORMAT, VERSION, from_json, to_json
from tests.views import hostile

DESCRIPTION = Path(__file__).parents[2] / "docs" / "document.md"


@pytest.fixture(scope="module")
def worked() -> doc.Document:
    torch.set_num_threads(1)
    model, loss, optimizer = worked_example.build()
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording.document(pointing=True)


def small(**more: Any) -> dict[str, Any]:
    document = {"title": ["t"], "summary": [], "sections": [], **more}
    return {"format": FORMAT, "version": VERSION, "document": document}


def tensor(**more: Any) -> dict[str, Any]:
    return {
        "block": "tensor",
        "symbol": "x",
        "shape": [2],
        "dtype": "float32",
        "role": "value",
        "entries": [1, 2],
        **more,
    }


def test_the_worked_example_comes_back_as_it_was(worked):
    assert from_json(to_json(worked)) == worked


@pytest.mark.parametrize("name", hostile.NAMES, ids=range(len(hostile.NAMES)))
def test_every_name_comes_back_as_it_was(name):
    document = hostile.document(name)
    text = to_json(document)
    assert repr(from_json(text)) == repr(document)  # nan is not equal to itself
    text.encode()


def test_what_json_has_no_word_for():
    entries = (math.inf, -math.inf, 1 + 2j, complex(0, math.inf), True, 7, 7.0, -0.0)
    block = doc.Tensor("x", (8,), "complex64", "value", entries)
    written = to_json(doc.Document((), (block,), ()))
    assert '"inf","-inf",{"re":1.0,"im":2.0},{"re":0.0,"im":"inf"},true,7,7.0,-0.0' in written
    [read] = from_json(written).summary
    assert [type(entry) for entry in read.entries] == [type(entry) for entry in entries]
    assert repr(read) == repr(block)


def test_a_histogram_and_a_sketch():
    block = doc.Tensor(
        "x", (99, 99), "float32", "gradient", None, (("norm", 1.0),),
        histogram=doc.Histogram(-1.0, 1.0, (1, 2)), sketch=doc.Sketch(1, 2, (0.5, -0.5)),
    )  # fmt: skip
    document = doc.Document((), (block,), ())
    assert from_json(to_json(document)) == document


@pytest.mark.parametrize(
    ("met", "said"),
    [
        (small(title="t"), 'document.title must be an array, not "t"'),
        (small(title=[{"math": 1}]), 'document.title[0] must be a string, {"math": "..."} or {"code": "..."}'),
        (small(more=1), 'document has an unknown field "more"'),
        (small(summary=[{"text": []}]), "document.summary[0] must be an object with \"block\": one of paragraph, "),
        (small(summary=[{"block": "paragraph"}]), "document.summary[0] has no field `text`"),
        (small(summary=[tensor(shape=[3])]), "document.summary[0] has shape [3], but 2 entries"),
        (small(summary=[tensor(shape=[10**9] * 2)]), "document.summary[0] has shape [1000000000, 1000000000], but 2"),
        (small(summary=[tensor(shape=[10**40])]), "document.summary[0].shape has an invalid size"),
        (small(summary=[tensor(shape=[-1, -2])]), "document.summary[0].shape has an invalid size"),
        (small(summary=[tensor(shape=[True, 2])]), "document.summary[0].shape[0] must be an integer, not true"),
        (small(summary=[tensor(entries=[1, "2"])]), 'document.summary[0].entries[1] must be a number, not "2"'),
        (small(summary=[tensor(role="secret")]), "document.summary[0].role must be one of value, gradient, jacobian, "),
        (small(summary=[tensor(statistics=[["norm"]])]), "document.summary[0].statistics[0] must be an array of 2"),
        (small(summary=[{"block": "table", "headers": ["a"], "rows": [[]]}]), "has a row that is longer"),
        (small(sections=[{"title": [], "anchor": "a", "kind": "note"}] * 2), 'two sections have the anchor "a"'),
        (small(sums=[{"of": {"row": 0, "role": "value", "index": []}, "text": "", "summands": []}]), "refers to row 0"),
        ([], 'the top level must be an object with "format": "chainrule document"'),
        ({**small(), "version": 0}, "`version` must be a positive integer, not 0"),
        ({**small(), "more": 0}, "the top level must have exactly the fields format, version and document"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_with_its_place(met, said):
    with pytest.raises(StorageError, match=re.escape(said)):
        from_json(json.dumps(met))


def test_a_newer_version_says_what_to_do():
    with pytest.raises(StorageError) as error:
        from_json(json.dumps({**small(), "version": VERSION + 1}))
    assert str(error.value) == (
        f"this document has version {VERSION + 1}, and this chainrule reads up to version {VERSION}. "
        "Update chainrule: pip install -U chainrule."
    )


def test_no_json_and_no_number():
    with pytest.raises(StorageError, match=r"this is not JSON: .* Is the file truncated\?"):
        from_json(to_json(hostile.document("x"))[:500])
    with pytest.raises(StorageError, match="the number NaN is not JSON"):
        from_json('{"format": NaN}')
    with pytest.raises(StorageError, match="a number in this document is too long"):
        from_json("1" * 5000)
    with pytest.raises(StorageError, match="nests its sections too deeply"):
        from_json("[" * 100_000)


def test_whatever_is_cut_or_changed_is_read_or_refused(worked):
    """A hand-edited file gives a document or a StorageError, and never anything else."""
    text, chance = to_json(worked), random.Random(0)
    for _ in range(300):
        start = chance.randrange(len(text))
        end = start + chance.randrange(30)
        edited = text[:start] + chance.choice(["", "0", '"', "}", "null", "[]", "-1", "true"]) + text[end:]
        with suppress(StorageError):
            assert isinstance(from_json(edited), doc.Document)


def test_the_description_names_every_field():
    described = DESCRIPTION.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", described, re.MULTILINE | re.DOTALL))
    kinds = [kind for kind in vars(doc).values() if isinstance(kind, type) and is_dataclass(kind)]
    kinds = [kind for kind in kinds if kind not in (doc.Math, doc.Code)]
    for kind in kinds:
        listed = re.findall(r"^\| `(\w+)` \|", sections[kind.__name__], re.MULTILINE)
        expected = [field.name for field in fields(kind)]
        assert listed == (["block", *expected] if kind in BLOCKS.values() else expected), kind.__name__
    assert set(BLOCKS.values()) == set(get_args(doc.Block))
    assert f"`{VERSION}`" in described
