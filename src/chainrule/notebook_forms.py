"""How a notebook shows what the verbs of a recording give: `why`, `findings`, `verify`, `recording["x"]`.

The classes stand in rooms that know no views, so their HTML and LaTeX forms are set from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from chainrule.document import Block, Code, Document, Paragraph, Role, Section, Span, Tensor

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding
    from chainrule.graph.graph import Value
    from chainrule.graph.snapshot import Snapshot

T = TypeVar("T")


class Findings(tuple["Finding", ...]):
    """The findings of a step; a notebook shows them one below the other."""

    __slots__ = ()

    def document(self) -> Section:
        """A section with one for each finding."""
        inner = tuple(
            Section((each.title,), f"finding-{n}", "note", tuple(_of(each))) for n, each in enumerate(self, 1)
        )
        return Section((), "findings", "note", () if self else (Paragraph(("Nothing was found.",)),), inner)


def shown(item: T) -> T:
    """The same object, which a notebook shows as HTML, and as LaTeX where that is asked for."""
    kind: Any = type(item)
    if "_repr_html_" not in vars(kind):
        kind._repr_html_, kind._repr_latex_ = _html, _latex
    return item


def _html(item: Any) -> str:
    from chainrule.views import fragment

    return fragment.written(_section(item))


def _latex(item: Any) -> str:
    from chainrule.views import latex

    return latex.fragment(_section(item))


def _section(item: Any) -> Section:
    from chainrule.graph.graph import Value

    found = _value(item) if isinstance(item, Value) else item.document()
    if isinstance(found, Document):
        return Section(found.title, "document", "note", found.summary, found.sections)
    assert isinstance(found, Section)
    return found


def _value(value: Value) -> Section:
    """A value with its gradient."""
    from chainrule.graph.names import escape

    name = rf"\text{{{escape(value.name)}}}"
    blocks: list[Block] = [_tensor(name, value.snapshot, "parameter" if value.kind == "parameter" else "value")]
    if value.gradient is None:
        blocks.append(Paragraph(("No gradient arrived.",)))
    else:
        blocks.append(_tensor(rf"\frac{{\partial J}}{{\partial {name}}}", value.gradient, "gradient"))
    title: tuple[Span, ...] = (Code(value.name),)
    if value.place is not None:
        title = (*title, f" ({value.place})")
    return Section(title, "value", "note", tuple(blocks))


def _tensor(symbol: str, snapshot: Snapshot, role: Role) -> Tensor:
    from chainrule.graph.snapshot import type_name
    from chainrule.graph.statistics_cache import StatisticsCache
    from chainrule.report.context import ELEMENTS, entries, pairs

    data, dtype = snapshot.data, type_name(snapshot.dtype)
    if data is not None and data.numel() <= ELEMENTS:
        return Tensor(symbol, snapshot.shape, dtype, role, entries(data.detach().to_dense()))
    known = StatisticsCache().of(snapshot)
    label = "" if data is not None else "numbers not kept"
    return Tensor(symbol, snapshot.shape, dtype, role, None, () if known is None else pairs(known), label=label)


def _of(finding: Finding) -> Iterable[Block]:
    tone = finding.severity
    yield Paragraph((*finding.text, f" ({finding.place})" if finding.place else ""), tone)
    yield from (Paragraph((each,)) for each in finding.evidence)
    yield Paragraph((f"Try: {finding.advice}",))
