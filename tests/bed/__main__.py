"""`python -m tests.bed [NAMES...]`: how many causes the commands name, and how many alarms healthy trainings raise.

`--every N` and `--run STEP` choose the commands; by default `watch --every 1`, `--every 10`, and `run` at steps 1 and
30. `--twins` runs the repaired twins of the faults instead. `--effect` compares how faults and twins train, bare.
`--table` writes the sources into docs/findings-evidence.md. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import sys

from tests.bed import Script, scripts
from tests.bed.evidence import write_table
from tests.bed.judging import Verdict, judge, report, shortfalls
from tests.bed.running import Result, run_all

HOWS = ("every=1", "every=10", "step=1", "step=30")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bed", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAMES", help="scripts, patterns, or the folders faults and healthy"
    )
    parser.add_argument("--every", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--run", type=int, action="append", default=[], metavar="STEP")
    parser.add_argument("--twins", action="store_true")
    parser.add_argument("--effect", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("-j", "--workers", type=int, default=2, choices=(1, 2))
    parser.add_argument("-v", "--verbose", action="store_true", help="print every finding above a note")
    options = parser.parse_args()
    if options.table:
        write_table()
        return
    chosen = list(scripts(*options.names))
    if options.effect:
        compare(chosen, options.workers)
        return
    hows = [f"every={n}" for n in options.every] + [f"step={n}" for n in options.run] or list(HOWS)
    if options.twins:
        jobs = [(each.name, each.twin, how) for each in chosen if each.twin for how in hows]
    else:
        jobs = [(each.name, each.text, how) for each in chosen for how in hows]
    by_name = {each.name: each for each in chosen}
    verdicts: list[Verdict] = []
    for result in run_all(jobs, options.workers):
        verdicts.append(judge(by_name[result.script], result, healthy=options.twins))
        print(result.script, result.how, verdicts[-1].outcome, verdicts[-1].detail, file=sys.stderr, flush=True)
    print(report(verdicts, hows, verbose=options.verbose))
    sys.exit(bool(shortfalls(verdicts, hows)))


def compare(chosen: list[Script], workers: int) -> None:
    """Print the figure of each fault beside that of its twin."""
    texts = {each.name: each.text for each in chosen} | {
        f"{each.name}__twin": each.twin for each in chosen if each.twin
    }
    results: dict[str, Result] = {}
    for result in run_all([(name, text, "bare") for name, text in texts.items()], workers):
        results[result.script] = result
    for name in (each.name for each in chosen):
        twin = results.get(f"{name}__twin")
        shown = [
            f"{each.figure or each.said.strip().splitlines()[-1:]} ({each.seconds:.1f} s)"
            for each in (results[name], twin)
            if each
        ]
        print(f"{name:42}", " | ".join(shown))


if __name__ == "__main__":
    main()
