"""The exceptions of a step: what the tape noted of each, with the values and lines that it has for that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.capture.lowering.naming import Paths
from chainrule.capture.lowering.operations import Lowering
from chainrule.graph.graph import Failure


def read_failures(lowering: Lowering, paths: Paths) -> Iterator[Failure]:
    """Every exception that was noted, in order."""
    tape = lowering.tape
    for raw in tape.failures.all:
        facts = raw.facts
        operation = None if raw.operation is None else lowering.at.get(raw.operation)
        value = None if raw.tensor is None else lowering.values.at(raw.tensor, raw.at)
        made = facts.made
        if made is None and operation is not None and (call := lowering.operations[operation].call) is not None:
            site = tape.calls[call].site
            made = None if site is None else site.place()
        module = facts.module if raw.module is None else paths.of(raw.module) or facts.module
        yield replace(facts, operation=operation, value=value, made=made, module=module)
