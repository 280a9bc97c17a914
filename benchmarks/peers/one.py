"""One tool on one model, in a process of its own: `python -m benchmarks.peers.one mlp torchlens` prints JSON.

A process each, because some of them change torch or the model for good, and the next one would be measured on top of
that; and because one that runs out of memory then takes no other with it. The bare step is timed in the same process,
round by round, on a model that the tool never saw.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict
from typing import Any

from benchmarks.footprint import measurable, peak
from benchmarks.peers.tools import TOOLS
from benchmarks.steps import SUBJECTS
from benchmarks.timing import compare

SHORT = 90  # characters of an error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.one", description=__doc__)
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--seconds", type=float, default=20, help="for the timed rounds (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="the model in the size of the tests")
    options = parser.parse_args()
    print(json.dumps(measured(options.model, options.tool, options.seconds, options.tiny)))


def measured(model: str, tool: str, seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Figures, or under `error` why there are none. Whatever a tool raises is its result here."""
    build = SUBJECTS[model].build
    bare, seen = build(tiny=tiny), build(tiny=tiny)
    with warnings.catch_warnings(action="ignore"):
        try:
            watched = TOOLS[tool](seen)
            captured = watched.count(watched.step())
        except ModuleNotFoundError as error:
            return {"error": f"not installed: {error.name}"}
        except Exception as error:
            return {"error": _short(error)}
        found = compare(bare, {tool: watched.step}, seconds)[tool]
        above = peak(watched.step) - peak(bare) if measurable() else None
    return {**asdict(found), **asdict(captured), "above": above}


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:SHORT]


if __name__ == "__main__":
    main()
