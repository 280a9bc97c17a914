"""What it costs to show a large step: `show()`, `--brief`, `verify` and the page, each on a recording of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from benchmarks.models import VisionTransformer
from benchmarks.overhead import recorded
from benchmarks.timing import Step, against, table, timed
from chainrule import Recording
from chainrule.views import page, terminal

SECONDS = 5.0
VERBS: dict[str, Callable[[Recording], Any]] = {
    "show()": lambda recording: terminal.text(recording.document()),
    "show(brief=True)": lambda recording: terminal.text(recording.document(brief=True)),
    "verify()": lambda recording: str(recording.verify()),
    "page": lambda recording: page.written(recording.document(pointing=True, running=True)),
}


def tables() -> Iterator[Table]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processor time counts those that wait, too
    made = table("Views of large steps, processor time", "step", "nodes", "view", "seconds", "target", texts=("view",))
    subjects = {
        "800 nodes: 160 small layers": layers,
        "small vision transformer": vision_transformer,
        "LBFGS, 100 iterations": lbfgs,
    }
    for verb in VERBS.values():
        verb(recorded(layers(3))())  # once without the clock: the first of a process imports
    for title, build in subjects.items():
        for view, verb in VERBS.items():
            recording: Recording = recorded(build())()
            nodes = len(recording.nodes)  # reading the recording is measured elsewhere
            made.add_row(title, f"{nodes:,}", view, *against(timed(lambda: verb(recording))[1], SECONDS))  # noqa: B023
    torch.set_num_threads(threads)
    yield made


def layers(count: int = 160, width: int = 8) -> Step:
    """So many small linear layers with tanh, trained with Adam: what is shown is all that costs."""
    torch.manual_seed(0)
    model = nn.Sequential(*(each for _ in range(count) for each in (nn.Linear(width, width), nn.Tanh())))
    x, y, optimizer = torch.randn(4, width), torch.randn(4, width), torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


def vision_transformer(batch: int = 8) -> Step:
    """Six blocks of width 64 on images of 32 x 32, trained with AdamW."""
    torch.manual_seed(0)
    model = VisionTransformer()
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def lbfgs(iterations: int = 100) -> Step:
    """A whole fit of a small perceptron in one `step` of LBFGS with line search."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.linspace(-3, 3, 32)[:, None]
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), torch.sin(x))
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)
