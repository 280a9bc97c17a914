"""The table of what cannot be checked, over PyTorch's OpInfo database: reason, how many nodes, and which.

python -m tests.opinfo.unchecked                  # print it
python -m tests.opinfo.unchecked --write          # and put it into docs/verify.md, between its two marks
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

import chainrule
from tests.opinfo.sweep import _run, _variants, database, dtype_of

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"
BEGIN, END = "<!-- unchecked: begin -->", "<!-- unchecked: end -->"
NAMED = 4  # node kinds that are named in a row


@dataclass
class Table:
    """What the proof said over the database."""

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    operations: int = 0
    samples: int = 0

    def markdown(self) -> str:
        """The table as it stands in the docs."""
        told = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.most_common())
        lines = [
            f"Over PyTorch's own database ({self.operations} operations, {self.samples} samples), by nodes: {told}.",
            "What is not checked, and why:",
            "",
            "| Reason | Nodes | Such as |",
            "|---|---|---|",
        ]
        for reason, count in self.reasons.most_common():
            names = ", ".join(f"`{kind}`" for kind, _ in self.kinds[reason].most_common(NAMED))
            lines.append(f"| {reason} | {count} | {names} |")
        return "\n".join(lines)


def table(samples: int, only: str = "") -> Table:
    """Record and prove `samples` samples of every operation (0: all)."""
    found = Table()
    for info in database():
        name = info.formatted_name
        if only not in name:
            continue
        found.operations += 1
        torch.manual_seed(0)
        dtype = dtype_of(info)
        for sample in islice(info.sample_inputs("cpu", dtype, requires_grad=True), samples or None):
            for function, in_place in _variants(info, dtype):
                if not (in_place and sample.broadcasts_input):
                    _prove(found, f"{name}{'_' if in_place else ''}", function, sample, in_place)
    return found


def _prove(found: Table, name: str, function, sample, in_place: bool) -> None:
    try:
        with chainrule.record(namespace={}) as recording:
            _run(function, sample, in_place)
    except Exception:  # OpInfo has samples that the operation itself refuses
        return
    found.samples += 1
    for row in recording.verify().rows:
        if row.node.leaf is not None:
            continue
        found.verdicts[row.verdict] += 1
        if row.verdict == "disagrees":
            found.alarms.append(f"{name}: {row.node.name}: {row.reason}")
        if row.verdict in ("not checked", "not differentiable"):
            reason = _general(row.reason)
            found.reasons[reason] += 1
            found.kinds.setdefault(reason, Counter())[row.node.name] += 1


def _general(reason: str) -> str:
    """A reason without what belongs to one sample alone: names, places, and what an exception had to say."""
    reason = re.sub(r"`([^`]*)`(\[[^\]]*\])?", "an argument", reason)
    reason = reason.removeprefix("our rule and autograd agree, but ")
    reason = re.sub(r" at \[[^\]]*\]", "", reason)
    reason = re.sub(r"\((\w+Error): .*\)", r"(\1)", reason)
    return reason.replace("|", r"\|")


def write(text: str) -> None:
    """Put the table between its marks; at the end of the page where it has none yet."""
    page = PAGE.read_text()
    section = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in page:
        before, rest = page.split(BEGIN, 1)
        page = before + section + rest.split(END, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n## What the gradient check leaves out\n\n{section}\n"
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=2, help="how many samples of each operation (0: all)")
    parser.add_argument("--only", default="", help="a part of the names of the operations to try")
    parser.add_argument("--write", action="store_true", help="write the table into docs/verify.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = table(given.samples, given.only)
    print(found.markdown())
    print("\n".join(["", f"{len(found.alarms)} disagree", *found.alarms]))
    if given.write:
        write(found.markdown())


if __name__ == "__main__":
    main()
