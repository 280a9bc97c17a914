from __future__ import annotations

import dataclasses
import errno
import json
import os
import struct
import typing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chainrule import Recording, load, record
from chainrule.errors import StorageError
from chainrule.graph import storage
from chainrule.graph.trees import reach
from tests.steps import worked


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def awkward() -> Recording:
    """One step with all that is hard to write down."""
    torch.manual_seed(0)
    real = nn.Parameter(torch.tensor([1.0, -2.0, float("inf"), -0.0]))
    whole = nn.Parameter(torch.tensor([1 + 2j, complex(0.5, -1.0)]))
    half = nn.Parameter(torch.tensor([[0.1, 3.0]], dtype=torch.bfloat16))
    table = nn.Embedding(4, 2, sparse=True)
    mask = torch.tensor([True, False, True, True])
    optimizer = torch.optim.SGD([real, half], lr=0.1, momentum=0.9)
    with record() as recording:
        a = Twice.apply(real.clamp(max=float("inf")).nan_to_num(posinf=3.0))
        b = (whole * whole.conj() * complex(0.0, 1.0)).imag.abs().sum()
        c = half.to(dtype=torch.float64, device=torch.device("cpu"), memory_format=torch.contiguous_format).sum()
        d = table(torch.tensor([1, 1])).sum()
        e = a[1:3].masked_fill(mask[1:3], -1.0)[..., :0].sum() + a[mask].sum()
        f = torch.zeros(3)
        f[0:2] = a[:2]
        cost = b + c + d + e + f.sum() + torch.zeros((), dtype=torch.float32, layout=torch.strided)
        cost.backward()
        optimizer.step()
    return recording


def differences(one: Any, other: Any, where: str = "graph") -> list[str]:
    """Where two graphs are not the same: every field, every number bit for bit, every operation."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return [
            found
            for field in dataclasses.fields(one)
            for found in differences(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
        ]
    if isinstance(one, torch.Tensor):
        one = one.to_dense() if one.layout is not torch.strided else one
        same = isinstance(other, torch.Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return [] if same and _bits(one) == _bits(other) else [f"{where}: {one} {other}"]
    if isinstance(one, (tuple, list)) and type(one) is type(other) and len(one) == len(other):
        return [x for i, (a, b) in enumerate(zip(one, other, strict=True)) for x in differences(a, b, f"{where}[{i}]")]
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return [x for key in one for x in differences(one[key], other[key], f"{where}[{key!r}]")]
    if _is(one, "Reexecution") and _is(other, "Reexecution"):
        return differences(one.function, other.function, where)
    if _is(one, "WriteThroughView") and _is(other, "WriteThroughView"):
        return differences(vars(one), vars(other), where)
    if isinstance(one, type) and isinstance(other, type):
        return [] if one.__name__ == other.__name__ else [where]
    if _is(one, "Reexecution") and isinstance(one.function, type):
        return [] if other is None else [where]  # a user's own autograd.Function is not in the file
    return [] if repr(one) == repr(other) else [f"{where}: {one!r} {other!r}"]


def _is(thing: Any, kind: str) -> bool:
    return type(thing).__name__ == kind


def _bits(data: torch.Tensor) -> bytes:
    data = torch.view_as_real(data.resolve_conj()) if data.is_complex() else data
    return bytes(data.detach().resolve_neg().clone(memory_format=torch.contiguous_format).untyped_storage())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "step.safetensors"
    worked().save(path)
    return path


# -- round trip


@pytest.mark.parametrize("recorded", [worked, awkward])
def test_every_fact_comes_back(recorded: Callable[[], Recording], tmp_path: Path) -> None:
    recording = recorded()
    recording.save(tmp_path / "step.safetensors")
    assert differences(recording.graph, load(tmp_path / "step.safetensors").graph) == []


def test_the_awkward_step_holds_what_it_is_for() -> None:
    graph = awkward().graph
    dtypes = {value.dtype for value in graph.values}
    assert dtypes >= {torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.bool, torch.int64}
    assert {value.shape for value in graph.values} >= {(), (0,)}
    assert any(v.grad is not None and v.grad.layout is torch.sparse_coo for v in graph.values)
    assert any(node.function_class is not None for node in graph.nodes)
    assert any(
        _is(op.function, "Reexecution") and _is(op.function.function, "WriteThroughView") for op in graph.operations
    )
    scalars = [repr(argument) for operation in graph.operations for argument in operation.arguments.values()]
    assert {"inf", "1j", "torch.float64"} <= set(scalars)


def test_a_loaded_recording_tells_and_proves_the_same(saved: Path) -> None:
    loaded, recording = load(saved), worked()
    assert loaded.loss == recording.loss == 0.19522885978221893
    assert [row.name for row in loaded.document().rows] == [row.name for row in recording.document().rows]
    assert loaded.verify().passed
    assert str(loaded) == str(recording)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_verdict_on_a_users_function_is_in_the_file_where_it_was_reached(factor: int, tmp_path: Path) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return factor * g * ctx.saved_tensors[0]  # type: ignore[no-any-return]

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with record() as recording:
        (Square.apply(2 * x) * torch.tensor([3.0, 5.0])).sum().backward()
    path = tmp_path / "step.safetensors"
    recording.save(path)
    assert load(path).verify().verdict == "not checked"
    recording.verify()
    for _ in range(3):  # also where it is saved again, verified or not
        recording.save(path)
        recording = load(path)
    assert recording.verify().verdict == ("agrees" if factor == 2 else "disagrees")
    assert "1 of your own checked when the step was saved" in " ".join(str(recording.verify()).split())
    recording.save(path)
    (row,) = (row for row in load(path).verify().rows if row.own)
    assert row.reason.startswith("checked when it was saved: ")
    assert row.reason.count("saved") == 1


def test_shared_tensors_are_written_once(tmp_path: Path) -> None:
    data = torch.arange(1000.0)
    graph = dataclasses.replace(worked().graph, notes=())
    values = tuple(dataclasses.replace(value, snapshot=value.snapshot.of(data)) for value in graph.values)
    storage.write(dataclasses.replace(graph, values=values), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < 60_000


def test_what_safetensors_cannot_hold_is_an_error(tmp_path: Path) -> None:
    graph = worked().graph
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    values = (
        dataclasses.replace(
            graph.values[0], snapshot=dataclasses.replace(graph.values[0].snapshot, shape=(2,), held=nested)
        ),
        *graph.values[1:],
    )
    with pytest.raises(StorageError, match="something that safetensors cannot store"):
        storage.write(dataclasses.replace(graph, values=values), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# -- damaged files


def refused(path: Path, match: str) -> None:
    """Reading fails with one sentence or two that name the file and say what to do."""
    with pytest.raises(StorageError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert len(message) < 600


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.safetensors", "there is no such file. Give a file that recording.save")


def test_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder. Give a file")
    (tmp_path / "empty.safetensors").touch()
    refused(tmp_path / "empty.safetensors", "cut short, corrupt, or of another kind")


@pytest.mark.parametrize("part", [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_cut_short(saved: Path, tmp_path: Path, part: float) -> None:
    content = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(len(content) * part)])
    refused(path, "cut short, corrupt, or of another kind")


@pytest.mark.parametrize(
    "start", [b"\xff" * 8, struct.pack("<Q", 2**40), struct.pack("<Q", 0), b"PK\x03\x04", b"\x80\x04"]
)
def test_a_corrupt_beginning(saved: Path, tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "corrupt.safetensors"
    path.write_bytes(start + saved.read_bytes()[len(start) :])
    refused(path, "is not a readable safetensors file")


def test_bits_turned_over_never_do_worse_than_a_clear_error(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "turned.safetensors"
    for place in range(8, len(content), len(content) // 200):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        with suppress(StorageError):
            load(path)


def raw(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_huge_claims(tmp_path: Path) -> None:
    shape = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    meta = {"format": storage.FORMAT, "version": "7", "graph": "{}"}
    refused(raw(tmp_path / "a.safetensors", {"0": shape, "__metadata__": meta}), "is not a readable safetensors file")
    overflow = {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}
    refused(raw(tmp_path / "b.safetensors", {"0": overflow, "__metadata__": meta}, b"1234"), "is not a readable")


@pytest.mark.parametrize(
    ("meta", "match"),
    [
        ({}, "not a recording of chainrule"),
        ({"format": "pt"}, "not a recording of chainrule"),
        ({"format": storage.FORMAT}, "has format version none"),
        ({"format": storage.FORMAT, "version": "6"}, "has format version 6, and this chainrule reads 7. Record the"),
        ({"format": storage.FORMAT, "version": "8"}, "has format version 8, and this chainrule reads 7. Update"),
        ({"format": storage.FORMAT, "version": "9" * 5000}, "has format version 9{20}, and"),
        ({"format": storage.FORMAT, "version": "x"}, "has format version x"),
        ({"format": storage.FORMAT, "version": "7"}, "does not describe a recording"),
        ({"format": storage.FORMAT, "version": "7", "graph": "["}, "does not describe a recording"),
        ({"format": storage.FORMAT, "version": "7", "graph": "[" * 100_000}, "does not describe a recording"),
        ({"format": storage.FORMAT, "version": "7", "graph": "null"}, "a NoneType stands where the graph should"),
        ({"format": storage.FORMAT, "version": "7", "graph": '{"Place": {}}'}, "a Place has the fields"),
    ],
)
def test_another_kind_or_version(tmp_path: Path, meta: dict[str, str], match: str) -> None:
    refused(raw(tmp_path / "a.safetensors", {"__metadata__": meta}), match)


# -- files edited by hand


def edited(saved: Path, path: Path, change: Callable[[Any], Any]) -> Path:
    """A copy whose description of the graph went through `change`."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    graph = json.loads(header["__metadata__"]["graph"])
    header["__metadata__"]["graph"] = json.dumps(change(graph))
    del header["__metadata__"]["checksum"]  # which tells a damaged file, not one that somebody made
    return raw(path, header, content[8 + length :])


def changed(*keys: Any, to: Any) -> Callable[[Any], Any]:
    def change(graph: Any) -> Any:
        item = graph
        for key in keys[:-1]:
            item = item[key]
        item[keys[-1]] = to
        return graph

    return change


VALUE = ("Graph", "values", "tuple", 3, "Value")
SNAPSHOT = (*VALUE, "snapshot", "Snapshot")
UNKEPT = {
    "shape": {"tuple": [-1]},
    "dtype": {"dtype": "torch.float32"},
    "device": "cpu",
    "data": None,
    "statistics": None,
}
OPERATION = ("Graph", "operations", "tuple", 1, "Operation")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (changed("Graph", "values", to=3), "the field values of a Graph"),
        (changed("Graph", "values", to=[]), "the field values of a Graph"),
        (changed("Graph", "notes", to={"tuple": [1]}), "the field notes of a Graph"),
        (changed(*VALUE, "kind", to="dream"), "the field kind of a Value cannot be dream"),
        (changed(*VALUE, "index", to="3"), "the field index of a Value"),
        (changed(*VALUE, "index", to=True), "the field index of a Value"),
        (changed(*VALUE, "index", to=4), "says that it is 4"),
        (changed(*VALUE, "names", to={"tuple": [1]}), "the field names of a Value"),
        (changed(*SNAPSHOT, "shape", to={"tuple": ["x"]}), "the field shape of a Snapshot"),
        (changed(*SNAPSHOT, "shape", to={"tuple": [7]}), "a tensor is not what its snapshot says"),
        (changed(*SNAPSHOT, to=UNKEPT), "is no shape"),
        (changed(*SNAPSHOT, "dtype", to="float32"), "the field dtype of a Snapshot"),
        (changed(*SNAPSHOT, "dtype", to={"dtype": "torch.nn"}), "KeyError: 'torch.nn'"),
        (changed(*SNAPSHOT, "data", to={"tensor": "none", "complex": False}), "KeyError: 'none'"),
        (changed(*SNAPSHOT, "data", to={"tensor": "0"}), "KeyError: 'complex'"),
        (changed(*SNAPSHOT, "data", to={"tensor": 0, "complex": False}), "KeyError: 0"),
        (changed(*SNAPSHOT, "data", to={"device": "cup"}), "does not describe a recording"),
        (changed(*SNAPSHOT, "data", to={"pickle": "gASV"}), "KeyError: 'pickle'"),
        (changed(*SNAPSHOT, "data", to={}), "does not describe a recording"),
        (changed(*VALUE, "node", to=999), "value 3 refers to number 999 of"),
        (changed(*VALUE, "node", to=-1), "value 3 refers to number -1 of"),
        (changed(*VALUE, "extra", to=1), "a Value has the fields"),
        (changed(*OPERATION, "arguments", to={"dict": [["self", {"Ref": {"value": 400}}]]}), "refers to number 400"),
        (changed(*OPERATION, "arguments", to={"dict": [[["x"], 1]]}), "unhashable"),
        (changed(*OPERATION, "function", to=7), "does not describe a recording"),
        (changed(*OPERATION, "function", to={"operation": "os.system"}), "'os.system' is no operation's name"),
        (changed(*OPERATION, "function", to={"operation": {"dict": []}}), "no write through a view"),
        (changed(*OPERATION, "call", to=99), "operation 1 refers to number 99 of"),
        (changed("Graph", "nodes", "tuple", 0, "Node", "function_class", to={"class": 7}), "TypeError"),
    ],
)  # fmt: skip
def test_wrong_types_and_indices(saved: Path, tmp_path: Path, change: Callable[[Any], Any], match: str) -> None:
    refused(edited(saved, tmp_path / "a.safetensors", change), match)


@pytest.mark.parametrize(
    "name",
    ["aten.from_file.default", "aten.no_such.default", "mine.op.default", "aten.__class__.mro", "c10d.send.default"],
)
def test_operations_that_are_not_run_again(saved: Path, tmp_path: Path, name: str) -> None:
    graph = load(
        edited(saved, tmp_path / "a.safetensors", changed(*OPERATION, "function", to={"operation": name}))
    ).graph
    assert graph.operations[1].function is None


def test_nothing_in_a_file_is_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was run")

    for name in ("builtins.eval", "builtins.exec", "os.system", "pickle.loads", "pickle.load", "torch.load"):
        monkeypatch.setattr(name, forbidden)
    hostile = "</script><img src=x onerror=alert(1)>"
    change = changed(*VALUE, "names", to={"tuple": [hostile, "__import__('os').system('touch pwned')"]})
    recording = load(edited(saved, tmp_path / "a.safetensors", change))
    assert recording.graph.values[3].name == hostile


# -- writing


class Full(OSError):
    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "step.html"
    path.write_text("old")

    def fail(*args: Any) -> None:
        raise Full

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StorageError, match=r"No space left on device\. What stood there before is unharmed") as caught:
        storage.write_atomically(path, b"new")
    assert str(caught.value).startswith(str(path))
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["step.html"]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.html"
    path.write_text("old")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["step.html"]


def test_a_recording_is_readable_for_whom_a_new_file_is(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    worked().save(tmp_path / "step.safetensors")
    assert (tmp_path / "step.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_one_memory_is_not_changed_by_saving(tmp_path: Path) -> None:
    """Tensors are written from where they are, those that share memory one by one."""
    x = torch.randn(8, 8, requires_grad=True)
    with record() as recording:
        (x.t()[:, 2:] @ x[2:]).sum().backward()
    before = [value.data.clone() for value in recording.graph.values]
    recording.save(tmp_path / "step.safetensors")
    loaded = load(tmp_path / "step.safetensors")
    for value, known, again in zip(recording.graph.values, before, loaded.graph.values, strict=True):
        assert torch.equal(value.data, known)
        assert torch.equal(again.data, known)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.html"
    path.write_text("old")
    opened = os.open
    monkeypatch.setattr(os, "open", lambda name, flags, mode: opened("/dev/full", os.O_WRONLY))
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_atomically(path, b"new" * 100_000)
    assert path.read_text() == "old"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be written: No such file or directory\. Give a path in a folder"):
        storage.write_atomically(tmp_path / "no" / "step.html", b"new")


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    storage.write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path: Path) -> None:
    storage.write_atomically(tmp_path / "a", b"new")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_every_kind_of_fact_can_be_stored() -> None:
    """What the fields of a graph lead to, by their types."""

    def kinds_in(hint: Any) -> list[Any]:
        if dataclasses.is_dataclass(hint):
            return list(typing.get_type_hints(hint).values())
        return list(typing.get_args(hint))

    kinds = {each for each in reach([type(worked().graph)], kinds_in) if dataclasses.is_dataclass(each)}
    assert kinds <= set(storage._kinds.values())
    assert {"Snapshot", "Statistics"} <= {kind.__name__ for kind in kinds}
