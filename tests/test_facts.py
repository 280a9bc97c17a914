"""The facts of operations stand with their rules, and are true; the lab alone names operations besides them."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chainrule
from chainrule import rules
from chainrule.rules.facts import NOTHING, Facts, _known, base_name, facts_of, facts_of_call, facts_of_node

SOURCE = Path(chainrule.__file__).parent
OUTSIDE = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "rules"]
ATEN = {schema.name.removeprefix("aten::") for schema in torch._C._jit_get_all_schemas() if "aten::" in schema.name}
OVERLOADS = {
    f"{schema.name.removeprefix('aten::')}.{schema.overload_name or 'default'}"
    for schema in torch._C._jit_get_all_schemas()
}

NO_OPERATION = {
    "": {"max", "norm", "mean", "std", "sum", "where"},  # statistics, and the place of a finding, everywhere
    "capture/lowering/naming.py": {"add", "sub", "mul", "div", "pow"},  # Python's operators, as in `__radd__`
    "capture/source.py": {"add", "sub", "mul", "div", "pow"},  # Python's operators, as in `__radd__`
    "diagnostics/data.py": {"normal", "normal_", "randn", "randn_like"},  # functions of a user's that draw
    "diagnostics/padding.py": {"index"},  # an argument
    "diagnostics/recurrent.py": {"index"},
    "diagnostics/tokens.py": {"index"},
    "lab/decompositions.py": {"prod", "amax"},
    "live/widget.py": {"view"},  # of a widget
    "derivation/contributions.py": {"linear"},  # the structure of a rule
    "derivation/jacobian.py": {"linear"},  # the structure of a rule
    "distributed.py": {"gather"},  # a public function of ours
    "graph/storage.py": {"slice"},  # Python's
    **{f"monitor/runs/{name}.py": {"chunk"} for name in ("format", "reader", "writer")},  # a table of the file
    # Functions that students confuse, and losses in which they make mistakes:
    "exercises/activations.py": {"relu", "sigmoid", "tanh"},
    "exercises/backward_slips.py": {"batch_norm", "relu", "softmax"},
    "exercises/forward_slips.py": {"batch_norm", "binary_cross_entropy", "mse_loss", "sigmoid", "softmax"},
    "exercises/loss_slips.py": {
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "mse_loss",
        "pow",
    },
    "exercises/update_slips.py": {"square", "t"},  # a mistake, and the number of a step
    "lab/program.py": {"t"},  # the number of a step
    "lab/rerun.py": {"t"},
    "report/update.py": {"t"},
    "lab/tracing.py": {  # what PyTorch's own decompositions leave, which is written down as it is
        "_local_scalar_dense",
        "_reshape_alias",
        "_unsafe_view",
        "bmm",
        "copy_",
        "cumsum",
        "embedding",
        "empty",
        "gather",
        "index",
        "index_select",
        "mm",
        "reshape",
        "view",
    },
    "reference.py": {"embedding", "linear", "t"},  # topics of rules, and a symbol
    # Functions that a user's backward calls, and mistakes in it:
    "verification/repair_changes.py": {
        "abs",
        "cos",
        "cosh",
        "exp",
        "log",
        "reciprocal",
        "relu",
        "rsqrt",
        "sigmoid",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tanh",
        "transpose",
    },
    "worksheets/sheets.py": {"t"},
    "verification/repair_edits.py": {
        "index_put_",
        "add",
        "cat",
        "clone",
        "contiguous",
        "cumsum",
        "detach",
        "div",
        "index_copy_",
        "mm",
        "mul",
        "multiply",
        "scatter_",
        "sub",
        "subtract",
        "t",
        "transpose",
    },
    "verification/repair_numbers.py": {
        "amax",
        "cumsum",
        "log_softmax",
        "logsumexp",
        "permute",
        "prod",
        "select",
        "softmax",
        "transpose",
        "var",
    },
    "verification/repair_pairs.py": {"add", "mul", "sub"},
    "verification/repair_samples.py": {"sqrt", "transpose"},
    "verification/repair_steps.py": {"add", "mul", "sub"},
    "views/page/mathml.py": {"normal"},  # a variant of MathML
    "views/formula.py": {"prod", "sqrt", "t"},  # LaTeX, and the symbol for the number of a step
}
"""Words that are also the name of an operation, by the file in which they are not."""


LISTED = 10  # names of operations that a text may have as words; LaTeX has functions of these names


@cache
def texts(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """The strings of a file, apart from its docstrings, with their lines; and what it takes from `torch.ops.aten`."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    described = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings, named = [], []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            strings.append((node.lineno, node.value))
        elif isinstance(node, ast.Attribute) and "aten" in (
            getattr(node.value, "attr", ""),
            getattr(node.value, "id", ""),
        ):
            named.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return strings, named


def test_no_operation_is_spelled_outside_the_rules() -> None:
    everywhere = {name.partition(".")[0] for name in _known} - NO_OPERATION[""]
    for path in OUTSIDE:
        known = everywhere - NO_OPERATION.get(str(path.relative_to(SOURCE)), set())
        strings, named = texts(path)
        if path.parent.name != "lab":  # which says how PyTorch's operations come down to primitives
            assert not named
            assert not [line for line, text in strings if len(everywhere.intersection(text.split())) > LISTED]
        for line, text in strings:
            words = text.replace("::", ".").split("aten.")[1:]
            assert not any(word[:1].isidentifier() for word in words), f"{path}:{line}: {text!r}"
            assert text not in known, f"{path}:{line}: {text!r}"
            assert not re.fullmatch(r"[A-Z]\w*Backward\d*", text), f"{path}:{line}: {text!r}"


def test_what_is_allowed_is_needed() -> None:
    for name, words in NO_OPERATION.items():
        found = {text for path in (OUTSIDE if not name else [SOURCE / name]) for _, text in texts(path)[0]}
        assert words <= found, name


def test_every_operation_exists() -> None:
    for name in (name for name in _known if not name.endswith(".")):
        assert name in ATEN or name in OVERLOADS or hasattr(torch.nn.functional, name), (
            f"{name}: a misspelt name says nothing of any operation"
        )
        Facts(**_known[name])


LINEAR: dict[str, tuple[Any, ...]] = {
    "add.Tensor": (torch.randn(2, 3), torch.randn(3)),
    "sub.Tensor": (torch.randn(2, 3), torch.randn(3)),
    "mul.Tensor": (torch.randn(2, 3), torch.randn(3)),
    "mul.Scalar": (torch.randn(2, 3), 3.0),
    "div.Tensor": (torch.randn(2, 3), torch.randn(3)),
    "div.Scalar": (torch.randn(2, 3), 3.0),
    "mm.default": (torch.randn(2, 3), torch.randn(3, 2)),
    "bmm.default": (torch.randn(2, 2, 3), torch.randn(2, 3, 2)),
    "addmm.default": (torch.randn(2), torch.randn(2, 3), torch.randn(3, 2)),
    "embedding.default": (torch.randn(4, 3), torch.tensor([1, 3, 1])),
    "nll_loss_forward.default": (torch.randn(4, 3), torch.tensor([0, 2, 1, 0]), None, 1, -100),
    "cat.default": ([torch.randn(2), torch.randn(3)],),
    "stack.default": ([torch.randn(2), torch.randn(2)],),
    "t.default": (torch.randn(2, 3),),
    "view.default": (torch.randn(2, 3), [6]),
    "_unsafe_view.default": (torch.randn(2, 3), [6]),
    "transpose.int": (torch.randn(2, 3), 0, 1),
    "permute.default": (torch.randn(2, 3), [1, 0]),
    "expand.default": (torch.randn(3), [2, 3]),
    "unsqueeze.default": (torch.randn(3), 0),
    "squeeze.default": (torch.randn(1, 3),),
    "squeeze.dim": (torch.randn(1, 3), 0),
    "squeeze.dims": (torch.randn(1, 3), [0]),
    "slice.Tensor": (torch.randn(4), 0, 1, 3),
    "select.int": (torch.randn(2, 3), 0, 1),
    "split.Tensor": (torch.randn(4), 2),
    "split_with_sizes.default": (torch.randn(4), [1, 3]),
    "unbind.int": (torch.randn(2, 3),),
    "alias.default": (torch.randn(3),),
    "clone.default": (torch.randn(3),),
    "neg.default": (torch.randn(3),),
    "sum.default": (torch.randn(3),),
    "sum.dim_IntList": (torch.randn(2, 3), [0]),
    "mean.default": (torch.randn(3),),
    "mean.dim": (torch.randn(2, 3), [0]),
    "index_select.default": (torch.randn(3), 0, torch.tensor([2, 0])),
    "gather.default": (torch.randn(2, 3), 1, torch.tensor([[0], [2]])),
}
CASES = [(name, wrt) for name, facts in _known.items() for wrt in facts.get("linear", {})]


@pytest.mark.parametrize(("name", "wrt"), CASES)
def test_what_is_linear_is_linear(name: str, wrt: str) -> None:
    """With the other terms left out, f(2x - 3y) = 2 f(x) - 3 f(y); with them, f(x + y) - f(x) is f(y)."""
    base, overload = name.split(".")
    function = getattr(getattr(torch.ops.aten, base), overload)
    arguments = dict(zip((each.name for each in function._schema.arguments), LINEAR[name], strict=False))
    without = facts_of(f"aten.{name}").linear[wrt]

    def run(arguments: dict[str, Any], x: Tensor) -> list[Tensor]:
        item = arguments[wrt]
        arguments = {**arguments, wrt: [x, *item[1:]] if isinstance(item, list) else x}
        outs = function(**{**arguments})
        outs = list(outs) if isinstance(outs, (list, tuple)) else [outs]
        return outs[:1] if base == "nll_loss_forward" else outs  # the other is the weight of all samples

    first = arguments[wrt][0] if isinstance(arguments[wrt], list) else arguments[wrt]
    x, y = torch.randn_like(first), torch.randn_like(first)
    for mixed, of_x, of_y in zip(*(run(without({**arguments}), each) for each in (2 * x - 3 * y, x, y)), strict=True):
        torch.testing.assert_close(mixed, 2 * of_x - 3 * of_y)
    sums = zip(*(run({**arguments}, each) for each in (x + y, x)), run(without({**arguments}), y), strict=True)
    for both, of_x, of_y in sums:
        torch.testing.assert_close(both - of_x, of_y)


@pytest.mark.parametrize("name", [name for name, facts in _known.items() if "slope" in facts])
def test_slopes_and_bounds_are_those_of_the_function(name: str) -> None:
    slope, bounds = facts_of_call(name).slope, facts_of_call(name).bounds
    assert slope is not None
    assert bounds is not None
    x = torch.randn(6, 5, dtype=torch.float64) * 2
    further = (-1, False) if slope.of_rows else ()
    function = getattr(torch.ops.aten, name)
    y, n = function(x, *further), x.shape[-1] if slope.of_rows else 1
    low, high = bounds({})
    assert low <= y.min()
    assert y.max() <= high
    jacobians = [torch.autograd.functional.jacobian(lambda row: function(row, *further), row) for row in x]
    traces = torch.stack([torch.diagonal(each).sum() for each in jacobians])
    measured = traces.mean() if slope.of_rows else traces.sum() / x.numel()
    assert slope.mean(y.mean().item(), (y**2).mean().item(), n) == pytest.approx(measured.item())
    assert measured <= slope.most(n)


def test_an_operation_in_place_has_the_facts_of_the_other_form() -> None:
    assert facts_of("aten.relu_.default").rectifies
    assert facts_of("aten.addmm_.default").weighs == ("mat1", "mat2")
    x = torch.tensor([0.5, -1.0], requires_grad=True)
    with chainrule.record(namespace={}) as recording:  # but it writes, however often it is called
        for _ in range(3):
            (x * 1).add_(1).mul_(2).sigmoid_().sum().backward()
    assert [each.name for each in recording.graph.calls].count("sigmoid_") == 3
    assert recording.verify().passed


def test_only_the_named_overload_is_linear() -> None:
    assert facts_of("aten.div.Tensor").linear
    assert not facts_of("aten.div.Tensor_mode").linear  # it rounds
    assert not facts_of("aten.view.dtype").linear  # it reads the bits as another type


def test_names_that_are_no_operation_have_no_facts() -> None:
    assert facts_of("sigmoid") is NOTHING  # an autograd.Function of a user's
    assert facts_of("mylib.sigmoid.default") is NOTHING
    assert facts_of_node("ViewBackward") is NOTHING  # one called View
    assert facts_of_node("ViewBackward0").only_reshapes
    assert facts_of_node("UnsafeViewBackward0").only_reshapes
    assert base_name("aten.addmm.default") == "addmm"


def test_a_new_rule_brings_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_all", [])
    for index in ("_by_node", "_by_call"):
        monkeypatch.setattr(rules, index, {})
    before = dict(_known)
    try:
        assert not facts_of("mylib.moved.default").keeps_numbers
        rules.rule(
            "MylibMovedBackward", equation="$out = $self", wrt={}, samples=lambda: [], source="a test",
            facts={"mylib.moved": Facts(keeps_numbers=True)},
        )  # fmt: skip
        assert facts_of("mylib.moved.default").keeps_numbers
    finally:
        _known.clear()
        _known.update(before)
        facts_of.cache_clear()


def test_a_function_of_a_users_is_not_taken_for_an_operation() -> None:
    """The gradient check leaves out `cholesky`, whose argument is symmetric; a Function of that name is checked."""

    class Cholesky(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *g: Tensor) -> Tensor:
            return 2 * g[0]

    x = torch.randn(3, requires_grad=True)
    with chainrule.record() as recording:
        Cholesky.apply(x).sum().backward()  # type: ignore[no-untyped-call]
    rows = recording.verify().rows
    assert [row.verdict for row in rows if "Cholesky" in row.node.name] == ["agrees"]
