"""Steps with every kind of tensor that is not a plain one, and what such a step leaves behind, to be compared.

As a script it runs cases, each in several ways, in a process of its own, which may crash:
`python -m tests.reliability.kinds_of_tensors WAY,WAY CASE...`
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import chainrule
from chainrule.errors import ChainruleError, ChainruleWarning

ROWS, WIDTH = 64, 80  # of an input: more than what is kept in any case
Case = tuple[nn.Module, Callable[[], Tensor]]
CASES: dict[str, Callable[[], Case]] = {}
OWN_CODE: dict[str, Callable[[], Case]] = {}
"""Cases with tensors of a class that runs code of its own: to follow a pointer of theirs is a crash."""


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def with_own_code(make: Callable[[], Case]) -> Callable[[], Case]:
    OWN_CODE[make.__name__] = make
    return make


def layer() -> nn.Linear:
    return nn.Linear(WIDTH, 64)


def rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, WIDTH)


# -- classes with code of their own -----------------------------------------------------------------------------------


class Wrapper(torch.Tensor):
    """Holds another tensor, and has no memory itself."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def held(each: Any) -> Any:
            return each.held if isinstance(each, Wrapper) else each

        out = func(*tree_map(held, args), **tree_map(held, kwargs or {}))
        if func._schema.name.endswith("_"):
            return args[0]
        return tree_map(lambda each: cls(each) if type(each) is Tensor else each, out)


class Flattening(Wrapper):
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Flattening:
        return Flattening(inner["held"])


class Integers(torch.Tensor):
    """A weight in int8 that is a float32 to all who ask, as quantisation libraries have it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: float) -> Integers:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers: Tensor, scale: float) -> None:
        self.numbers, self.scale = numbers, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        return func(*tree_map(_dequantised, args), **tree_map(_dequantised, kwargs or {}))


def _dequantised(each: Any) -> Any:
    return each.numbers.float() * each.scale if isinstance(each, Integers) else each


class Refusing(torch.Tensor):
    """Knows one operation, and raises for every other one."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Refusing:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.mm.default:
            raise NotImplementedError(f"Refusing: {func}")
        return args[0].mm(args[1].held)


@with_own_code
def wrapped_input() -> Case:
    model, x = layer(), Wrapper(rows())
    return model, lambda: model(x).square().mean()


@with_own_code
def wrapped_parameter() -> Case:
    model = layer()
    model.weight = nn.Parameter(Flattening(model.weight.detach()))
    return model, lambda: model(rows()).square().mean()


@with_own_code
def wrapped_between() -> Case:
    model, second = layer(), nn.Linear(64, 70)
    return nn.ModuleList([model, second]), lambda: second(Flattening(model(rows()).detach()).relu()).square().mean()


@with_own_code
def quantised_weight() -> Case:
    model = nn.ModuleList([layer()])
    model.weight = nn.Parameter(Integers(torch.randint(-127, 127, (64, 64), dtype=torch.int8), 0.01), False)
    return model, lambda: F.linear(model[0](rows()), model.weight).square().mean()


@with_own_code
def refusing() -> Case:
    model, weight = layer(), Refusing(torch.randn(64, 64))
    return model, lambda: (model(rows()) * torch.mm(rows()[:, :64], weight)).mean()


@with_own_code
def two_tensors() -> Case:
    from torch.testing._internal.two_tensor import TwoTensor

    model, x = layer(), TwoTensor(rows(), rows())
    return model, lambda: model(x).square().mean()


@with_own_code
def two_tensor_parameter() -> Case:
    from torch.testing._internal.two_tensor import TwoTensor

    model = layer()
    model.weight = nn.Parameter(TwoTensor(model.weight.detach(), model.weight.detach() * 2))
    return model, lambda: model(rows()).square().mean()


@with_own_code
def fake() -> Case:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model, x = layer(), rows()
    return model, lambda: model(x).square().mean()


@with_own_code
def fake_mode_inside() -> Case:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = layer()

    def loss() -> Tensor:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.ones(ROWS, WIDTH)).sum()
        return model(rows()).square().mean()

    return model, loss


@with_own_code
def masked() -> Case:
    model = layer()

    def loss() -> Tensor:
        out = model(rows())
        part = torch.masked.masked_tensor(out.detach().clone(), out > 0, requires_grad=True)
        part.sum().backward()
        return out.square().mean()

    return model, loss


@with_own_code
def jagged() -> Case:
    model = layer()
    x = torch.nested.nested_tensor([rows(30), rows(50)], layout=torch.jagged)
    return model, lambda: torch.cat([each.reshape(-1) for each in model(x).relu().unbind()]).square().mean()


@with_own_code
def jagged_between() -> Case:
    model = layer()
    return (
        model,
        lambda: (
            torch.nested.as_nested_tensor([model(rows()), model(rows(30))], layout=torch.jagged)
            .values()
            .square()
            .mean()
        ),
    )


# -- no code of their own, no plain memory -----------------------------------------------------------------------------


@case
def nested() -> Case:
    model, x = layer(), torch.nested.nested_tensor([rows(30), rows(50)], layout=torch.strided)
    return model, lambda: model(x).to_padded_tensor(0.0).square().mean()


@case
def quantised() -> Case:
    model = layer()

    def loss() -> Tensor:
        out = model(rows())
        return (out * torch.quantize_per_tensor(out.detach(), 0.1, 0, torch.quint8).dequantize()).mean()

    return model, loss


@case
def quantised_buffer() -> Case:
    model, scales = layer(), torch.ones(64) * 0.1
    zeros = torch.zeros(64, dtype=torch.long)
    weight = torch.quantize_per_channel(torch.randn(64, 64), scales, zeros, 0, torch.qint8)
    model.register_buffer("integers", weight)
    return model, lambda: (model(rows()) @ weight.dequantize()).square().mean()


@case
def mkldnn() -> Case:
    model = layer()
    return model, lambda: torch.relu(model(rows()).to_mkldnn()).to_dense().square().mean()


@case
def meta() -> Case:
    model = layer().to("meta")
    return model, lambda: model(torch.ones(ROWS, WIDTH, device="meta")).square().mean()


@case
def functional() -> Case:
    model = layer()

    def loss() -> Tensor:
        x = torch._to_functional_tensor(rows())
        x.add_(1)
        torch._sync(x)
        return model(torch._from_functional_tensor(x)).square().mean()

    return model, loss


@case
def functionalised() -> Case:
    model = layer()
    return model, lambda: torch.func.functionalize(lambda x: (model(x) + 0).relu_())(rows()).square().mean()


@case
def gradients_of_each_example() -> Case:
    model = layer()
    weights = dict(model.named_parameters())

    def of_one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().mean()

    def loss() -> Tensor:
        each = torch.vmap(torch.func.grad(of_one), in_dims=(None, 0))(weights, rows())
        return model(rows()).square().mean() + sum(gradient.detach().mean() for gradient in each.values())

    return model, loss


@case
def escaped_from_a_transform() -> Case:
    model, escaped = layer(), []

    def loss() -> Tensor:
        torch.vmap(lambda x: escaped.append(x * 2) or x)(rows())
        return model(rows()).square().mean()

    return model, loss


@case
def freed() -> Case:
    model = layer()

    def loss() -> Tensor:
        gone = rows() * 2
        gone.untyped_storage().resize_(0)
        return model(rows()).square().mean()

    return model, loss


@case
def sparse_input() -> Case:
    model, x = layer(), rows().relu().to_sparse()
    return model, lambda: torch.sparse.mm(x, model.weight.t()).square().mean() + model.bias.sum()


@case
def sparse_gradient() -> Case:
    model, index = nn.Embedding(2000, 32, sparse=True), torch.arange(0, 2000, 3)
    return model, lambda: model(index).square().mean()


@case
def sparse_and_dense_gradients_of_one_tensor() -> Case:
    model, places = layer(), torch.tensor([[0, 1, 2], [2, 0, 1]])

    def loss() -> Tensor:
        matrix = torch.sparse_coo_tensor(places, model.bias[:3], (3, 3)).coalesce()
        product = torch.sparse.mm(matrix, torch.ones(3, 2)).sum() + torch.sparse.softmax(matrix, 1).to_dense()[0, 2]
        return product + torch.sparse.sum(matrix) + model.weight.sum()

    return model, loss


@case
def sparse_parameter() -> Case:
    model = layer()
    model.weight = nn.Parameter(model.weight.detach().relu().to_sparse())
    return model, lambda: torch.sparse.mm(model.weight, rows().t()).square().mean() + model.bias.sum()


@case
def compressed_parameter() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beta
        model = layer()
        model.weight = nn.Parameter(model.weight.detach().to_sparse_csr())
    return model, lambda: (model.weight @ rows().t()).square().mean() + model.bias.sum()


@case
def compressed_input() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = layer(), torch.ones(ROWS, WIDTH)
        inputs = [x.to_sparse_csr(), x.to_sparse_bsr((4, 4))]
    return model, lambda: (inputs[0] @ model.weight.t()).square().mean() + model(inputs[1].to_dense()).square().mean()


@case
def conjugated() -> Case:
    model, x = layer(), torch.randn(64, 64, dtype=torch.cfloat)
    return model, lambda: (model(rows()).to(torch.cfloat) @ x.conj()).abs().mean()


@case
def conjugated_parameter() -> Case:
    model = nn.ParameterList([nn.Parameter(torch.randn(64, 64, dtype=torch.cfloat).conj())])
    return model, lambda: (model[0] @ model[0]).abs().mean()


@case
def negated() -> Case:
    model, x = layer(), torch.randn(ROWS, WIDTH, dtype=torch.cfloat).conj().imag
    return model, lambda: model(x).square().mean()


@case
def empty() -> Case:
    model = layer()
    model.nothing = nn.Parameter(torch.zeros(0, 5))
    return model, lambda: model(rows()).mean() + model(rows(0)).sum() + model.nothing.sum()


class Watching(torch.Tensor):
    """Has `__torch_function__` alone, as its operations are those of any tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class OwnParameter(nn.Parameter):
    pass


@case
def function_subclass() -> Case:
    model, x = layer(), rows().as_subclass(Watching)
    return model, lambda: model(x).square().mean()


@case
def parameter_subclass() -> Case:
    model = layer()
    model.weight = OwnParameter(model.weight.detach())
    model.scale = nn.Buffer(torch.ones(64))
    return model, lambda: (model(rows()) * model.scale).square().mean()


@case
def lazy() -> Case:
    model = nn.LazyLinear(64)
    return model, lambda: model(rows()).square().mean()


@case
def lazy_and_unused() -> Case:
    model = layer()
    model.unused = nn.LazyLinear(64)
    return model, lambda: model(rows()).square().mean()


@case
def expanded() -> Case:
    model, x = layer(), torch.randn(1, WIDTH).expand(ROWS, WIDTH)
    return model, lambda: model(x).square().mean()


# -- what a step leaves behind, and reading it -------------------------------------------------------------------------


def plain(tensor: Tensor | None) -> Tensor | None:
    """The numbers of a tensor of any kind; zeros where it has none."""
    while tensor is not None and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        held = next((getattr(tensor, name) for name in ("held", "a") if hasattr(tensor, name)), None)
        tensor = torch.zeros(tensor.shape) if held is None else held
    if tensor is None:
        return None
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return torch.zeros(tensor.shape) if tensor.is_meta else tensor.detach().resolve_conj().resolve_neg().clone()


def left_behind(
    make: Callable[[], Case], around: Callable[[nn.Module], AbstractContextManager[Any]]
) -> tuple[Any, Any]:
    """The losses and gradients of two steps, with what `around` gives around the first of them, and what it gave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, on prototypes
        warnings.simplefilter("error", ChainruleWarning)  # a watch that ends
        torch.manual_seed(5)
        model, loss = make()
        left: list[Tensor | None] = []
        with around(model) as given:
            _step(model, loss, left)
        _step(model, loss, left)
    return left, given


def _step(model: nn.Module, loss: Callable[[], Tensor], left: list[Tensor | None]) -> None:
    torch.manual_seed(6)
    model.zero_grad()
    found = loss()
    found.backward()
    left.append(plain(found))
    trained = [each for each in model.parameters() if not isinstance(each, nn.UninitializedParameter)]
    left.extend(plain(each.grad) for each in trained)
    if any(each.grad is not None for each in trained):
        with torch.no_grad():
            for each in trained:
                if type(each.grad) is Tensor and each.layout is torch.strided and each.grad.layout is torch.strided:
                    each -= 0.1 * each.grad


def same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(one, other, strict=True)
    )


def bare(make: Callable[[], Case]) -> Any:
    """What the step leaves without us."""
    return left_behind(make, lambda model: nullcontext())[0]


def readings(recording: chainrule.Recording) -> Iterator[Callable[[], Any]]:
    """Every way to read a recording."""
    folder = Path(tempfile.mkdtemp())
    yield lambda: recording.graph
    yield lambda: str(recording)
    yield lambda: recording.document(brief=True)
    yield lambda: recording.findings()
    yield lambda: recording.verify()
    yield lambda: recording.recompute()
    for name, parameter in recording.parameters.items():
        yield lambda name=name, parameter=parameter: recording.why(name, (0,) * len(parameter.shape))
    for suffix in ("html", "json", "safetensors"):
        yield lambda suffix=suffix: recording.save(folder / f"step.{suffix}")
    yield lambda: str(chainrule.load(folder / "step.safetensors"))


def read(recording: chainrule.Recording) -> None:
    """Read all that can be read; nothing but an error of ours may be raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for reading in readings(recording):
            with suppress(ChainruleError):
                reading()


def check(name: str, way: str) -> None:
    """One case, recorded or watched, against the bare run."""
    make = {**CASES, **OWN_CODE}[name]
    if way == "watch":
        target = Path(tempfile.mkdtemp()) / "run.db"
        left, _ = left_behind(make, lambda model: chainrule.watch(model, every=1, to=target))
        assert same(left, bare(make)), name
        return
    left, recording = left_behind(make, lambda model: chainrule.record(keep=way))
    assert same(left, bare(make)), name
    read(recording)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        for one in sys.argv[1].split(","):
            check(each, one)
        print(each, flush=True)
