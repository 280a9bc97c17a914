"""The margins of a Jacobian as tensors of their own below it: a page shows these instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule import document as doc


def without_margins(document: doc.Document) -> doc.Document:
    """The same document, in which no Jacobian has margins."""
    return replace(document, sections=tuple(map(_section, document.sections)))


def _section(section: doc.Section) -> doc.Section:
    inner = tuple(map(_section, section.sections))
    return replace(section, sections=inner, blocks=tuple(_blocks(section)))


def _blocks(section: doc.Section) -> Iterator[doc.Block]:
    waiting: list[doc.Block] = []  # the sentence about zeros stands directly below the Jacobian
    for block in section.blocks:
        if waiting and not isinstance(block, doc.Paragraph):
            yield from waiting
            waiting = []
        if isinstance(block, doc.Tensor) and block.upstream is not None and block.product is not None:
            waiting = list(_flattened(block, block.upstream, block.product))
            block = replace(block, upstream=None, product=None)
        yield block
    yield from waiting


def _flattened(block: doc.Tensor, upstream: doc.Margin, product: doc.Margin) -> Iterator[doc.Block]:
    before, after = rf"\mathrm{{vec}}({upstream.symbol})", rf"\mathrm{{vec}}({product.symbol})"
    yield doc.Equation(rf"{after} = {before} \cdot {block.symbol}", "product")
    for symbol, margin, names, label in (
        (before, upstream, block.row_labels, "upstream, flattened"),
        (after, product, block.column_labels, "times the Jacobian"),
    ):
        labels = tuple(f"dJ/d{name}" for name in names)
        shape = (1, len(margin.entries))
        yield doc.Tensor(symbol, shape, block.dtype, "gradient", margin.entries, column_labels=labels, label=label)
