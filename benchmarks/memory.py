"""What recording costs in memory: above the bare step, and whether it grows with the number of steps."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import linear_regression

from rich.table import Table

from benchmarks import steps
from benchmarks.footprint import MB, alone, measurable, resident
from benchmarks.overhead import KEEPS, recorded
from benchmarks.steps import SUBJECTS
from benchmarks.timing import Step, against, table

ALLOWED = 1.05  # of what is kept, above the bare step
STATISTICS = 50 * MB  # the same for statistics, of GPT-2 small
FLAT_STEPS, WARM_UP, EVERY = 200, 20, 5
READ = "all, its graph read"
# A leak is of objects, and a narrow model has as many as a wide one: 200 steps of these take minutes, not hours.
FLAT: dict[str, tuple[str, Callable[[], Step]]] = {
    "worked-example": ("worked example, with Adam", steps.worked_example),
    "mlp": (SUBJECTS["mlp"].title, steps.mlp),
    "chain": (SUBJECTS["chain"].title, steps.chain),
    "resnet50": ("ResNet-50, batch 1 at 32", partial(steps.resnet50, batch=1, side=32)),
    "gpt2-eager": ("GPT-2, 12 layers of width 96, eager", partial(steps.gpt2, "eager", length=16, width=96)),
    "gpt2-sdpa": ("GPT-2, 12 layers of width 96, sdpa", partial(steps.gpt2, "sdpa", length=16, width=96)),
    "decoder": ("the same by hand", partial(steps.decoder, length=16, width=96)),
}


def tables() -> Iterator[Table]:
    if not measurable():
        made = table("Memory", "not measured")
        made.add_row("this system does not tell a process its peak (no /proc, or it is read-only)")
        yield made
        return
    yield _above()
    yield _over_time()


def _above() -> Table:
    """Peak of the process above that of the bare step, each case in a process of its own."""
    columns = ("values and gradients", "held", "autograd's anyway", "peak above bare", "limit")
    made = table("Memory of one recorded step, MB", "step", "keep", *columns)
    for key, subject in SUBJECTS.items():
        for keep in KEEPS:
            found = alone(key, keep)
            limit = {"all": ALLOWED * found["made"]}.get(keep, STATISTICS if "GPT-2" in subject.title else None)
            figures = [f"{found[name] / MB:,.1f}" for name in ("made", "held", "shared")]
            above = against(found["above"] / MB, limit and round(limit / MB, 1), 1)
            made.add_row(subject.title, keep, *figures, *above)
    return made


def _over_time() -> Table:
    """Each case in a process of its own too: a slope of what another left behind says nothing."""
    made = table(f"Resident memory over {FLAT_STEPS} steps", "step", "keep", "slope, kB a step", "growth, MB", "growth")
    for key, (title, _) in FLAT.items():
        for case in ("bare", *KEEPS, READ):
            found = alone(key, case, module="benchmarks.memory")
            slope, growth, size = (found[name] for name in ("slope", "growth", "size"))
            made.add_row(title, case, f"{slope / 1e3:+,.3f}", f"{growth / MB:+,.2f}", f"{growth / size:+.2%}")
    return made


def resident_slope(step: Step, count: int = FLAT_STEPS, warm_up: int = WARM_UP) -> tuple[float, float, float]:
    """(bytes a step by least squares, bytes from first to last, bytes at the end), after a warm-up in which the
    allocator finds its size.
    """
    for _ in range(warm_up):
        step()
    counts, sizes = [], []
    for number in range(count + 1):
        if number % EVERY == 0:
            gc.collect()
            counts.append(number)
            sizes.append(resident())
        step()
    return linear_regression(counts, sizes).slope, sizes[-1] - sizes[0], sizes[-1]


def main() -> None:
    """`python -m benchmarks.memory gpt2-sdpa all` prints one case as JSON; with `--full` the model in its full size."""
    key, case, *full = sys.argv[1:]
    step = SUBJECTS[key].build() if full else FLAT[key][1]()
    run = recorded(step, "all" if case in ("bare", READ) else case)
    cases: dict[str, Step] = {"bare": step, READ: lambda: run().graph}
    slope, growth, size = resident_slope(cases.get(case, run))
    print(json.dumps({"slope": slope, "growth": growth, "size": size}))


if __name__ == "__main__":
    main()
