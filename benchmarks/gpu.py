"""The same figures on a GPU: `python -m benchmarks.gpu` prints the table, or says that there is none.

A GPU works through a queue, so the clock starts and stops when the queue is empty. What would stall a training step is
counted too: each time that the program waits for the device, told by PyTorch's own debug mode for that.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import steps
from benchmarks.__main__ import machine
from benchmarks.footprint import MB
from benchmarks.overhead import KEEPS, recorded
from benchmarks.steps import Training
from benchmarks.timing import HEADINGS, Step, compare, table

WAITS = "called a synchronizing CUDA operation"  # what the debug mode warns of


class Mixed(Training):
    """Forward pass and loss under autocast to bfloat16, as PyTorch's documentation has it."""

    def loss(self) -> Tensor:
        with torch.autocast(self.inputs.device.type, torch.bfloat16):
            return super().loss()


@dataclass(frozen=True)
class Case:
    title: str
    build: Callable[[], Training]
    targets: dict[str, float]


CASES = (
    Case(
        "GPT-2 small, 8 x 1,024 tokens, sdpa, bf16 autocast",
        lambda: mixed(steps.gpt2("sdpa", batch=8, length=1024)),
        {"all": 1.1, "statistics": 1.15},
    ),
    Case("ResNet-50, batch 8 at 224", steps.resnet50, {}),
    Case("ResNet-50, batch 64 at 224, bf16 autocast", lambda: mixed(steps.resnet50(batch=64)), {}),
    Case("MLP 784-512-512-10, batch 64", steps.mlp, {}),
    Case("the same, with Adam", lambda: steps.mlp().updated_by(torch.optim.Adam), {}),
)


@dataclass(frozen=True)
class Device:
    """What is asked of the device; another stands in for it where the tests have none."""

    name: str
    wait: Callable[[], None]
    peak: Callable[[Step], float]
    waits: Callable[[Step], int]


def main() -> None:
    console = Console()
    if not torch.cuda.is_available():
        console.print("No GPU here (torch.cuda.is_available() is False): nothing was measured.")
        return
    console.print(f"{machine()}, {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    device = Device("cuda", torch.cuda.synchronize, peak, waits)
    for made in tables(CASES, device):
        console.print("", made)


def tables(cases: tuple[Case, ...], device: Device, seconds: float = 30) -> Iterator[Table]:
    time = table("Recording on a GPU, as a multiple of the bare step", "step", "keep", *HEADINGS)
    memory = table("Memory and waiting on a GPU", "step", "keep", "peak, MB", "above bare, MB", "waits", "above bare")
    for case in cases:
        step = case.build().on(device.name)
        runs = {keep: recorded(step, keep) for keep in KEEPS}
        for keep, found in compare(step, runs, seconds, device.wait).items():
            time.add_row(case.title, keep, *found.cells(case.targets.get(keep)))
        bare, bare_waits = device.peak(step), device.waits(step)
        memory.add_row(case.title, "bare", f"{bare / MB:,.1f}", "", str(bare_waits), "")
        for keep, run in runs.items():
            most, count = device.peak(run), device.waits(run)
            figures = (f"{most / MB:,.1f}", f"{(most - bare) / MB:+,.1f}", str(count), f"{count - bare_waits:+}")
            memory.add_row(case.title, keep, *figures)
    yield time
    yield memory


def mixed(training: Training) -> Mixed:
    """The same step with its forward pass under autocast."""
    return Mixed(**vars(training))


def peak(step: Step) -> float:
    """Bytes that PyTorch has handed out on the device at the most, while the step runs and its result is held."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = step()
    torch.cuda.synchronize()
    found = float(torch.cuda.max_memory_allocated())
    del result
    return found


def waits(step: Step) -> int:
    """How often the program waits for the device while the step runs."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(WAITS in str(each.message) for each in heard)


if __name__ == "__main__":
    main()
