"""docs/published.md, and a live page of one example, from the same facts as the tests."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

from chainrule import document, views
from tests.published import EXAMPLES
from tests.published.example import AGREES, CARRIED, CUT, LAST, READ, WRONG, Compared, Example, Result, compare

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
LIVE = "softmax"

HEAD = """# Published derivations, reproduced

Other people have worked out training steps by hand, or printed the numbers of one. This page sets what they printed
beside what chainrule says of the same step: {examples} examples with {numbers} numbers.

Each model is written here in ordinary PyTorch, in float64, and recorded as one step. chainrule derives every gradient
in it with its own rules and verifies it against autograd and central differences; every node of each step agrees.
Besides that, gradients of what is given are measured once more: by central differences of the whole step, without
chainrule and without autograd.

| Verdict | |
|---|---|
| {agrees} | rounded to the digits that are printed, our number is the printed one; of sixteen, up to rounding |
| {cut} | the printed digits are the first ones of ours |
| rounded on the way | the source computed with numbers that it had rounded; doing the same gives what it prints |
| {read} | the number is right, but of something else than its label says |
| {last} | by less than two units, and no rounding of ours gives it |
| follows from ... | right, if computed from a number before it that is wrong |
| {wrong} | none of these. What we tried is said below the table: another convention, other rounding, another reading |

A wrong number is shown with the reason as far as it can be seen, and with our number, which a second computation
confirms. This is no judgement of a text: most of these have taught many people.

`python -m tests.published` writes this page, and the tests check it. `python -m tests.published published.html` records
[one of them](#{live}) as a live page.

## Overview

| Example | numbers | agree | nearly | follow | wrong |
|---|---:|---:|---:|---:|---:|
{overview}
"""


def page() -> str:
    """The text of docs/published.md."""
    results = [compare(example) for example in EXAMPLES]
    head = HEAD.format(
        examples=len(results),
        numbers=sum(each.count() for each in results),
        agrees=AGREES,
        cut=CUT,
        read=READ,
        last=LAST,
        wrong=WRONG,
        live=anchor(next(each for each in EXAMPLES if each.key == LIVE)),
        overview="\n".join(map(overview, results)),
    )
    shown: set[object] = set()
    return head + "".join(section(each, shown) for each in results)


def anchor(example: Example) -> str:
    kept = "".join(each for each in example.title.lower() if each.isalnum() or each in " -")
    return kept.replace(" ", "-")


def overview(result: Result) -> str:
    near = result.count(CARRIED) + result.count(READ) + result.count(LAST)
    follow, wrong = result.count("follows"), result.count(WRONG)
    agree = result.count() - near - follow - wrong
    title = f"[{result.example.title}](#{anchor(result.example)})"
    return f"| {title} | {result.count()} | {agree} | {near or ''} | {follow or ''} | {wrong or ''} |"


def section(result: Result, shown: set[object]) -> str:
    """One example; code that the page has shown already is not shown again."""
    example = result.example
    lines = [f"\n## {example.title}\n", f"{example.source}: <{example.address}>.", f"It prints {example.prints}"]
    if example.read:
        lines[1] = f"{lines[1][:-1]} (read in {example.read})."
    text = "\n".join((lines[0], *(fill(each) for each in lines[1:]), "", fill(f"Given: {example.inputs}"), ""))
    for part, rows in zip(example.parts, result.parts, strict=True):
        text += f"\n**{sentence(part.title)}**\n" if part.title else ""
        function = getattr(part.loss, "func", part.loss)
        text += "" if function in shown else f"\n{code(function)}"
        shown.add(function)
        text += "\n| | printed | chainrule | verdict |\n|---|---|---|---|\n" + "".join(map(line, rows))
        text += "".join(f"\n{fill(note)}\n" for note in notes(rows))
    return text + (f"\n{fill(example.remark)}\n" if example.remark else "")


def sentence(title: str) -> str:
    return title[:1].upper() + title[1:]


def fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def code(function: Callable[..., object]) -> str:
    """The model, as it was recorded."""
    source = re.sub(r"  # noqa.*", "", inspect.getsource(function))
    return f"```text\n{source.rstrip()}\n```\n"


def line(row: Compared) -> str:
    printed = ", ".join(minus(each) for each in row.printed)
    ours = ", ".join(map(digits, row.printed, row.ours, row.verdicts))
    return f"| {row.row.label} | {printed} | {ours} | {row.verdict} |\n"


def digits(printed: str, number: float, verdict: str) -> str:
    """Our number as it is printed where it agrees, else with more digits; never with those that rounding may change."""
    if verdict == AGREES:
        return minus(printed)
    places = max(-Decimal(printed).as_tuple().exponent, 0)
    return minus(f"{number:.{min(places + 3, 12)}f}")


def minus(number: str) -> str:
    return "0" if Decimal(number) == 0 else number.replace("-", "−")


def notes(rows: list[Compared]) -> Iterator[str]:
    """What is said below a table, once each."""
    said: dict[str, list[str]] = {}
    for row in rows:
        text = row.row.why or row.row.reading
        if text:
            said.setdefault(text, []).append(row.row.label)
    for text, labels in said.items():
        yield f"*{'; '.join(labels)}*: {text}"


# -- the live page ----------------------------------------------------------------------------------------------------


def live(path: str | os.PathLike[str]) -> None:
    """Write the page of one recorded example, which begins with what is printed."""
    result = compare(next(each for each in EXAMPLES if each.key == LIVE))
    (recording,) = result.recordings
    told = recording.document(pointing=True)
    first = document.Section(("Printed",), "published", "overview", tuple(printed_blocks(result)))
    title = (f"{result.example.title}: printed, and recorded",)
    whole = document.Document(title, told.summary, (first, *told.sections), told.rows, told.sums)
    Path(path).write_text(views.by_suffix()[".html"].written(whole), encoding="utf-8")


def printed_blocks(result: Result) -> Iterator[document.Block]:
    example = result.example
    yield document.Paragraph((f"{example.source.replace('*', '')}, {example.address}. Given: {example.inputs}",))
    rows = tuple(tuple((each,) for each in cells(row)) for row in result.rows())
    yield document.Table(("", "printed", "recorded", "verdict"), rows)
    for note in notes(result.rows()):
        yield document.Paragraph((note.replace("*", ""),), "warning")
    if example.remark:
        yield document.Paragraph((example.remark,), "note")


def cells(row: Compared) -> tuple[str, str, str, str]:
    _, label, printed, ours, verdict, _ = (each.strip() for each in line(row).split("|"))
    return label, printed, ours, verdict.strip("*")
