"""Writes the reference pages, docs/rules.md and docs/findings.md, from the registries: `python -m chainrule.reference`.

It also writes docs/result.schema.json from the dataclasses of a result, and docs/llms.txt from the pages' first lines.

A rule's formulas may depend on how its operation was called, so each rule is shown on its first sample that reaches it.
The samples are recorded as a user's code is: this module stands above the rules, and no rule imports it.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch

from chainrule.derivation.backprop import applied, rule_of
from chainrule.diagnostics import BY_TOPIC, CHECKS, Check, Thresholds
from chainrule.diagnostics.causes import EFFECTS
from chainrule.diagnostics.check import check_id
from chainrule.recording import record
from chainrule.rules import Applied, Latex, Rule, Sample, registered
from chainrule.tools import schema

DOCS = Path(__file__).parents[2] / "docs"
RULES, FINDINGS = DOCS / "rules.md", DOCS / "findings.md"
ENTRY = 60  # characters, from which on a page is described
SCHEMA, LLMS = DOCS / "result.schema.json", DOCS / "llms.txt"
COMMAND = "python -m chainrule.reference"

RULES_HEAD = r"""# The rules

<!-- Written by `COMMAND` from the registry. Do not edit: change the rule. -->

COUNT rules, by topic. Each says which autograd nodes it answers to, its equation, and for every argument with a
gradient the local derivative and what PyTorch really runs, the vector-Jacobian product. A bar over a symbol is the
gradient of the loss with respect to it: $`\bar{y} = \partial J / \partial y`$. Here $`x`$ is the argument `self`,
$`y`$ the output; the others stand under their usual letters or their names. Where a formula depends on how the
operation was called, the page shows one such call. What has no rule is recorded and checked all the same, and shown
with PyTorch's own formula.

"""

# What a reader meets first; other topics follow by their names.
READ_FIRST = (
    "arithmetic", "elementary", "special", "activation", "linear", "reduce", "extremes", "norms", "running", "shape",
    "join", "complex_parts", "indexing", "embedding", "scatter_reduce", "normalise", "convolve", "pool", "resample",
    "grid_sample", "attention", "recurrent", "packing", "linalg", "factorise", "reflections", "spectral", "random",
    "loss", "class_losses",
)  # fmt: skip

SYMBOLS = {"self": "x", "out": "y", "g": r"\bar{y}"}
LETTERS = {
    "input": "X", "weight": "W", "bias": "b", "target": "t", "mat1": "A", "mat2": "B", "query": "Q", "key": "K",
    "value": "V", "exponent": "p", "alpha": r"\alpha", "beta": r"\beta", "eps": r"\epsilon", "tensors": "x",
}  # fmt: skip


def rules_page() -> str:
    """The page of all rules, in Markdown."""
    torch.manual_seed(0)  # some samples are drawn
    rules = [rule for rule in registered() if rule.ours]
    text = RULES_HEAD.replace("COMMAND", COMMAND).replace("COUNT", str(len(rules)))
    others = sorted({rule.topic for rule in rules} - set(READ_FIRST))
    for topic in (*READ_FIRST, *others):
        entries = [entry(rule) for rule in rules if rule.topic == topic]
        text += f"## {topic}\n\n" + "\n".join(entries) + "\n" if entries else ""
    return text.rstrip() + "\n"


def entry(rule: Rule) -> str:
    """One rule: nodes, equation, derivatives, kink, source."""
    return "\n".join([f"### {rule.name}", "", *_facts(rule, first_use(rule)), ""])


def _facts(rule: Rule, op: Applied | None) -> Iterator[str]:
    symbols = _symbols(rule, op)

    def formula(template: Latex, **more: str) -> str:
        if op is None and callable(template):
            return "(depends on how it is called)"
        return "$`" + " ".join(rule.latex(template, op or Applied({}, ()), {**symbols, **more}).split()) + "`$"

    nodes = ", ".join(f"`{node}`" for node in rule.nodes)
    calls = ", ".join(f"`{call}`" for call in rule.calls)
    yield "- answers to " + ", and to the call ".join(part for part in (nodes, calls) if part)
    yield f"- equation: {formula(rule.equation)}"
    if (where := formula(rule.where)) != "$``$":
        yield f"- where {where}"
    for argument, wrt in rule.wrt.items():
        product = formula(wrt.product, grad=rf"\bar{{{symbols.get(argument, argument)}}}")
        yield f"- `{argument}`: local derivative {formula(wrt.local)}; product {product}"
    for argument, kind in rule.constants.items():
        yield f"- `{argument}`: {kind}"
    if rule.kink:
        yield f"- where there is no derivative: {_escape(rule.kink.choice)}"
    for each in rule.conventions:
        at = f"`{each.argument}`: " if each.argument != "self" else ""
        yield f"- by convention: {at}{_escape(each.choice)}{f' (`{each.source}`)' if each.source else ''}"
    if rule.remark:
        yield f"- worth knowing: {_escape(rule.remark)}"
    yield f"- source: {_escape(rule.source)}"


def first_use(rule: Rule) -> Applied | None:
    """The operation of the first sample that this rule answers to; None where no sample reaches it on this machine.

    PyTorch chooses some kernels by the device (flash attention), and then other nodes are made here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some operations are deprecated, or still prototypes
        return next((op for sample in rule.samples() for op in _uses(rule, sample)), None)


def _uses(rule: Rule, sample: Sample) -> Iterator[Applied]:
    with record(namespace={}) as recording:
        kept = sample.function(*sample.arguments, **sample.keywords)  # noqa: F841 (its graph lives as long as it)
    graph = recording.graph
    yield from (step.op for step in recording.steps if step.rule is rule and step.op is not None)
    for node in graph.nodes:
        if node.operation is not None:
            op = applied(graph, graph.operations[node.operation])
            if rule_of(graph, node, op) is rule:
                yield op


def _symbols(rule: Rule, op: Applied | None) -> dict[str, str]:
    """Short letters for the usual arguments, the name itself for the rest; `out0`, `g0`, ... for several outputs."""
    arguments = op.arguments if op else {}
    numbers = {name for name, value in arguments.items() if isinstance(value, (int, float))}
    names = {*arguments, *rule.wrt, *rule.constants} - numbers
    slots = max(rule.outputs, len(op.outs) if op else 0)
    outputs = {f"{name}{slot}": f"{SYMBOLS[name]}_{{{slot}}}" for name in ("out", "g") for slot in range(slots)}
    if "g" in names:
        outputs["g_"] = "g"  # an argument of that name, as `$g` is the upstream gradient
    symbols = {name: LETTERS.get(name, _upright(name)) for name in names}
    lists = {name: len(value) for name, value in arguments.items() if isinstance(value, list)}
    items = {f"{name}{place}": f"{symbols[name]}_{{{place}}}" for name in lists for place in range(lists[name])}
    return symbols | items | outputs | SYMBOLS


def _upright(name: str) -> str:
    return name if len(name) == 1 else r"\mathrm{" + name.replace("_", r"\_") + "}"


# -- findings ---------------------------------------------------------------------------------------------------------

FINDINGS_HEAD = """# The findings

<!-- Written by `COMMAND` from the registry. Do not edit: change the check. -->

COUNT kinds, by topic. A finding is advice with evidence, never a verdict: the step may be exactly what its author
wants. A **note** is worth knowing, a **warning** most likely does harm, an **error** means that
numbers are lost or that nothing is learnt.

`recording.findings()` looks at one step, and `chainrule.diagnostics.findings_over_time(history, step_findings)` at a
run. A finding of a run says since which step it holds; if one step cannot decide, it is a note until it has lasted.
Both take `silence=("at-kink",)`, the ids to leave out, and `thresholds=chainrule.Thresholds(units_off=0.5)`.
`chainrule.distributed.gather(recording)` and a watch compare the ranks of a [distributed](distributed.md) training.
[The evidence](findings-evidence.md) lists the public faults and healthy trainings on which all of this is measured.

"""

TABLE_HEAD = """## Thresholds

The fields of `chainrule.Thresholds`. Each lies well beyond what healthy runs showed (`tests/bed/loops`).

| Field | Default | In units of | What it decides | Where it comes from |
|---|---|---|---|---|
"""


def findings_page() -> str:
    """The page of all findings, in Markdown."""
    text = FINDINGS_HEAD.replace("COMMAND", COMMAND).replace("COUNT", str(sum(map(len, BY_TOPIC.values()))))
    for topic, checks in BY_TOPIC.items():
        text += f"## {topic}\n\n" + "".join("\n".join(_finding(check)) + "\n\n" for check in checks)
    return text + TABLE_HEAD + "\n".join(_thresholds()) + "\n"


def _finding(check: Check) -> Iterator[str]:
    yield f"### {check.id}\n"
    yield f"{_escape(check.title)}. *{_severity(check)}*\n"
    yield f"- what is found: {_escape(check.what)}"
    yield f"- why it matters: {_escape(check.why)}"
    yield f"- what to try: {_escape(check.advice)}"
    if check.thresholds:
        yield "- thresholds: " + ", ".join(f"[`{name}`](#thresholds)" for name in check.thresholds)
    yield f"- source: {_escape(check.source)}"


def explanation(id: str) -> str:
    """One kind of finding in plain text. Raises SilenceError for an id that no check has."""
    check_id(id, "--explain")
    check = CHECKS[id]
    limits = {each.name: each for each in fields(Thresholds)}
    rows = [
        (check.id, f"{check.title}. {_severity(check)}"), ("what is found", check.what), ("why it matters", check.why),
        ("what to try", check.advice), ("may cause", ", ".join(dict.fromkeys(EFFECTS.get(id, ())))),
        ("may be caused by", ", ".join(cause for cause, effects in EFFECTS.items() if id in effects)),
        *((name, f"{limits[name].default:g} ({limits[name].metadata['unit']})") for name in check.thresholds),
        ("source", check.source),
    ]  # fmt: skip
    return "\n".join(f"{name}: {words}" for name, words in rows if words)


def _severity(check: Check) -> str:
    scope = "across ranks" if check.across_ranks else "in one step and over time" if check.step_checks else "over time"
    lasting = f"; over time after {check.lasts} examined steps in a row" if check.lasts > 1 else ""
    unfinished = "; also in a step that never reached its update" if check.unfinished else ""
    return f"{check.severity.capitalize()}, {scope}{lasting}{unfinished}."


def _thresholds() -> Iterator[str]:
    for each in fields(Thresholds):
        cells = (_escape(each.metadata[key]) for key in ("unit", "meaning", "source"))
        yield f"| `{each.name}` | {each.default:g} | {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text in Markdown: characters that would be emphasis, markup or the edge of a cell are escaped outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\\|])", r"\\\1", part) for part in parts)


# -- for programs -----------------------------------------------------------------------------------------------------

LLMS_HEAD = """# chainrule

> Records one ordinary training step of an unmodified PyTorch model, derives and checks every derivative in it, and
> watches whole trainings for what is unhealthy.

In code: `with chainrule.record() as recording:` around a training step, then `recording.show()`, `.verify()`,
`.findings()` and `.why("fc1.weight", (0, 1))`. For a script as it is: `chainrule run`, `chainrule verify` and
`chainrule watch`, all with `--json`. For an assistant: `chainrule mcp`.

## Pages

"""


def llms_page() -> str:
    """What a language model reads first: what there is, and a line for each page."""
    pages = {path for path in DOCS.rglob("*.md") if path.name != "index.md" or path.parent != DOCS}  # it is the head
    ordered = sorted(pages, key=lambda path: (len(path.relative_to(DOCS).parts), path.as_posix()))
    return LLMS_HEAD + "".join(f"- {_entry_of(path)}\n" for path in ordered)


def _entry_of(path: Path) -> str:
    """A page by its title and its first sentences, of which a short one alone says too little."""
    text = path.read_text(encoding="utf-8")
    if included := re.match(r":::\{include\} (\S+)", text):
        text = (path.parent / included[1]).read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    title, _, rest = text.strip().removeprefix("# ").partition("\n")
    words = next((each for each in rest.split("\n\n") if re.match(r"\n*[\w`*\[]", each)), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(words.split()))
    said = ""
    for sentence in re.split(r"(?<=[.?]) ", plain):
        said = f"{said} {sentence}".strip()
        if len(said) >= ENTRY:
            break
    return f"[{title.strip()}]({path.relative_to(DOCS).as_posix()}): {said.removesuffix(':')}"


def main() -> None:
    """Rewrite the pages."""
    for path, page in ((RULES, rules_page), (FINDINGS, findings_page), (SCHEMA, schema.text), (LLMS, llms_page)):
        path.write_text(page(), encoding="utf-8")
        print(f"{path.relative_to(DOCS.parent)} is written", file=sys.stderr)


if __name__ == "__main__":
    main()
