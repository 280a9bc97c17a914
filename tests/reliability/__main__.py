"""`python -m tests.reliability [PART OF A NAME | =NAME= ...]`: the matrix of trainings, and what was harmed in it."""

from __future__ import annotations

import sys
from collections import Counter

from tests.reliability.matrix import WAYS, harm
from tests.reliability.trainings import TRAININGS


def main(wanted: list[str]) -> int:
    """Run the matrix; ends with 1 where anything was harmed."""
    names = [name for name in TRAININGS if not wanted or any(part in f"={name}=" for part in wanted)]
    held: Counter[str] = Counter()
    for name, way, harmed in harm(names):
        held[way] += not harmed
        if harmed:
            print(f"{name}, {way}: {harmed}", flush=True)
    for way in WAYS:
        if way != "bare":
            print(f"{way}: {held[way]} of {len(names)} trainings as without chainrule")
    return int(sum(held.values()) != len(names) * (len(WAYS) - 1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
