"""Record every differentiable operation of PyTorch's OpInfo database, and look for a node that nothing is tied to.

python -m tests.opinfo.sweep            # all operations, two samples each
python -m tests.opinfo.sweep --samples 0 --only index_put      # all samples of some
python -m tests.opinfo.sweep --rules    # which node kinds have a rule of ours, and which operations need the others
"""

from __future__ import annotations

import argparse
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import chainrule
from chainrule import rules
from chainrule.graph.trees import tensors_in
from tests.steps import cloned

# LAPACK's gelsy gives other last digits with other memory alignment, recorded or not.
UNSTEADY = {"linalg_lstsq", "linalg_lstsq_grad_oriented"}


@dataclass
class Report:
    """What the sweep met."""

    operations: set[str] = field(default_factory=set)
    samples: int = 0
    nodes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    made_by: dict[str, set[str]] = field(default_factory=dict)
    untied: Counter[tuple[str, str]] = field(default_factory=Counter)  # (node kind, what is missing) -> how many
    found_in: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{len(self.operations)} operations, {self.samples} samples, {self.nodes} nodes, {len(self.kinds)} kinds; "
            f"untied {sum(self.untied.values())}, failures {len(self.failures)}"
        ]
        lines += [f"  skipped, {reason}: {count}" for reason, count in self.skipped.most_common()]
        for (kind, reason), count in self.untied.most_common():
            where = ", ".join(sorted(self.found_in[kind, reason])[:6])
            lines.append(f"  untied {kind}: {reason}, {count} times ({where})")
        return "\n".join([*lines, *(f"  failed {each}" for each in self.failures)])

    def rules(self) -> str:
        """The node kinds with and without a rule of ours."""
        lines = [f"{len(self.explained)} of {len(self.kinds)} node kinds have a rule."]
        for kind, count in self.kinds.most_common():
            told = self.explained[kind]
            if told < count:
                made = ", ".join(sorted(self.made_by[kind])[:5])
                lines.append(f"  {kind}: {'no rule' if not told else f'a rule for {told} of {count}'} ({made})")
        return "\n".join(lines)


def database() -> list[Any]:
    """Every entry of OpInfo that supports autograd on the CPU in float64 (or only in complex128)."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [info for info in op_db if info.supports_autograd and dtype_of(info) is not None]


def dtype_of(info: Any) -> torch.dtype | None:
    supported = info.supported_backward_dtypes("cpu")
    return next((dtype for dtype in (torch.float64, torch.complex128, torch.float32) if dtype in supported), None)


def sweep(samples: int = 2, only: str = "", infos: list[Any] | None = None) -> Report:
    """Record `samples` samples (0: all) of every operation whose name contains `only`."""
    report = Report()
    for info in infos if infos is not None else database():
        if only in info.formatted_name:
            _try_operation(report, info, samples)
    return report


def _try_operation(report: Report, info: Any, count: int) -> None:
    name = info.formatted_name
    report.operations.add(name)
    torch.manual_seed(0)
    dtype = dtype_of(info)
    inputs = info.sample_inputs("cpu", dtype, requires_grad=True)
    for sample in islice(inputs, count or None):
        for function, in_place in _variants(info, dtype):
            if in_place and sample.broadcasts_input:
                continue
            _try_sample(report, f"{name}{'_' if in_place else ''}", function, sample, in_place)


def _variants(info: Any, dtype: torch.dtype | None) -> Iterator[tuple[Callable[..., Any], bool]]:
    yield info.op, False
    if info.inplace_variant is not None and info.supports_inplace_autograd:
        yield info.inplace_variant, True


def _try_sample(report: Report, name: str, function: Callable[..., Any], sample: Any, in_place: bool) -> None:
    try:
        plain = _run(function, sample, in_place)
    except Exception as error:  # OpInfo has samples that the operation itself refuses
        report.skipped[f"PyTorch itself refuses ({name}: {type(error).__name__})"] += 1
        return
    try:
        with chainrule.record(namespace={}) as recording:
            recorded = _run(function, sample, in_place)
        graph = recording.graph
    except Exception:
        report.failures.append(f"{name}: {traceback.format_exc(limit=-3)}")
        return
    report.samples += 1
    if not _same(plain, recorded, exact=name not in UNSTEADY):
        report.failures.append(f"{name}: gradients differ from the unrecorded ones")
    _count(report, name, graph)


def _run(function: Callable[..., Any], sample: Any, in_place: bool) -> list[Tensor | None]:
    """Outputs and gradients of one sample, from a seed that is the same each time."""
    torch.manual_seed(1)
    leaves: list[Tensor] = []

    def fresh(tensor: Tensor) -> Tensor:
        leaf = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        leaves.append(leaf)
        return leaf

    again = sample.transform(lambda item: fresh(item) if isinstance(item, Tensor) else item)
    start = again.input
    if in_place:
        start = start.clone() if isinstance(start, Tensor) else [each.clone() for each in start]
    out = again.output_process_fn_grad(function(start, *again.args, **again.kwargs))
    outputs = [o for o in tensors_in(out) if o.requires_grad]
    if outputs:
        seeds = [torch.randn_like(_strided(o)) for o in outputs]
        torch.autograd.backward([_strided(o) for o in outputs], seeds)
    return [*(o.detach() for o in outputs), *(leaf.grad for leaf in leaves)]


def _strided(tensor: Tensor) -> Tensor:
    if tensor.is_nested:
        return tensor.to_padded_tensor(0.0)
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _same(left: list[Tensor | None], right: list[Tensor | None], exact: bool = True) -> bool:
    return len(left) == len(right) and all(
        (a is None) == (b is None) and (a is None or equal(a, b, exact)) for a, b in zip(left, right, strict=True)
    )


def equal(left: Tensor, right: Tensor, exact: bool) -> bool:
    """Bit for bit, or but for rounding; NaN is like NaN."""
    left, right = (_strided(each).resolve_conj().resolve_neg() for each in (left, right))
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not exact:
        return torch.allclose(left, right, rtol=1e-6, atol=1e-9, equal_nan=True)
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    return bool((left.eq(right) | (left.isnan() & right.isnan())).all())


def _count(report: Report, name: str, graph: Any) -> None:
    for node in graph.nodes:
        if node.leaf is not None or node.name == "torch::autograd::AccumulateGrad":
            continue
        report.nodes += 1
        report.kinds[node.name] += 1
        report.made_by.setdefault(node.name, set()).add(name)
        for reason in missing(graph, node):
            report.untied[node.name, reason] += 1
            report.found_in.setdefault((node.name, reason), set()).add(name)
        if _has_rule(graph, node):
            report.explained[node.name] += 1


def missing(graph: Any, node: Any) -> Iterator[str]:
    """What a node that ran is not tied to: its operation, its outputs, its arguments."""
    if not node.executions:
        return
    operation = graph.operations[node.operation] if node.operation is not None else None
    if operation is None or operation.function is None:
        yield "operation"
        return
    if not _gives_its_outputs(graph, node, operation):
        yield "inputs that give its outputs"
    if any(g is not None and _output(node, slot) is None for p in node.executions for slot, g in enumerate(p.upstream)):
        yield "output"
    edges = {edge.position: edge for edge in node.edges}
    for passage in node.executions:
        for position, gradient in enumerate(passage.downstream):
            edge = edges.get(position)
            if gradient is None or edge is None:  # no edge: it leads nowhere, and the gradient is thrown away
                continue
            if edge.value is None or edge.argument is None:
                yield "argument"
            elif graph.values[edge.value].shape != tuple(gradient.shape):
                yield "argument of that shape"


def _gives_its_outputs(graph: Any, node: Any, operation: Any) -> bool:
    """Whether running it again on the recorded inputs gives the recorded outputs: every value is the right version."""
    if operation.function is None:
        return True
    arguments = cloned(graph.filled(operation.arguments))
    if operation.random_state is not None:
        torch.set_rng_state(operation.random_state)
    try:
        again = operation.function(arguments)
    except Exception:
        return False
    values = [value for value in operation.outputs if value is not None]
    return all(
        equal(graph.values[value].data, out, exact=False)
        for value, out in zip(values, tensors_in(again), strict=True)
        if value in node.outputs  # CTC's others hold memory that nobody has written to
    )


def _output(node: Any, slot: int) -> int | None:
    return node.outputs[slot] if slot < len(node.outputs) else None


def _applied(graph: Any, operation: Any) -> rules.Applied:
    outs = tuple(None if value is None else graph.values[value].data for value in operation.outputs)
    return rules.Applied(graph.filled(operation.arguments), outs, operation.name)


def _has_rule(graph: Any, node: Any) -> bool:
    if node.operation is None:
        return False
    try:
        return rules.for_node(node.name, _applied(graph, graph.operations[node.operation])) is not None
    except Exception:  # a rule that cannot take this operation has no rule for it
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=2, help="how many samples of each operation (0: all)")
    parser.add_argument("--only", default="", help="a part of the names of the operations to try")
    parser.add_argument("--rules", action="store_true", help="list the node kinds that have no rule of ours")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report = sweep(given.samples, given.only)
    print(report)
    if given.rules:
        print(report.rules())


if __name__ == "__main__":
    main()
