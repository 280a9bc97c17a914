"""Counts how many mistakes of students are named: `python -m tests.exercises [ANSWERS OF EACH SLIP] [NETWORK ...]`."""

from __future__ import annotations

import sys
from collections import Counter

from tests.exercises.recorded import NETWORKS
from tests.exercises.wrong_answers import measured


def main(arguments: list[str]) -> None:
    each, names = int(arguments[0]) if arguments else 3, tuple(arguments[1:]) or tuple(NETWORKS)
    for kind in ("tensors", "single", "two"):
        scores = measured(kind, each, names)
        for name, score in scores.items():
            print(f"{kind:8} {name:14} named {score.named:4} of {score.asked:4}, wrongly {len(score.wrongly)}")
        asked, named = sum(s.asked for s in scores.values()), sum(s.named for s in scores.values())
        unnamed = sum((s.unnamed for s in scores.values()), Counter())
        print(f"{kind:8} {'all':14} named {named:4} of {asked:4} ({named / max(asked, 1):.1%})")
        print(*(f"  {count:3} of {slip} have no name" for slip, count in unnamed.most_common()), sep="\n")
        print(*(f"  WRONGLY {each}" for s in scores.values() for each in s.wrongly), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
