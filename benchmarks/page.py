"""The page: how large, how long it takes to make, to open, and to scroll. Needs Debian's chromium and playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from benchmarks import steps
from benchmarks.overhead import recorded
from benchmarks.timing import against, table, timed
from chainrule.document import Document
from chainrule.recording import Recording
from chainrule.views import page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OPENED = 5  # times
# Scroll the unfolded mirror from its top to its end, and tell how long each frame took, in milliseconds.
SCROLL = """async () => {
  const pane = document.querySelector("#values"), frames = [];
  pane.scrollTop = 0;
  const more = () => pane.scrollTop + pane.clientHeight < pane.scrollHeight - 2 && frames.length < 600;
  for (let last = performance.now(); more();) {
    pane.scrollTop += 160;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""
TARGETS = {  # bytes, seconds to make, seconds until it can be used
    "the worked example": (400_000, None, 0.5),
    "GPT-2 small": (4_000_000, 3.0, 1.5),
}


def tables() -> Iterator[Table]:
    made = table("The page", "what", "the worked example", "target", "GPT-2 small", "target")
    small, large = recorded(steps.worked_example()), recorded(steps.gpt2("sdpa"))
    page.written(small().document(pointing=True))  # once without the clock: the first of a process imports
    columns = [_measured(small(), *TARGETS["the worked example"]), _measured(large(), *TARGETS["GPT-2 small"])]
    for (what, *first), (_, *second) in zip(*columns, strict=True):
        made.add_row(what, *first, *second)
    yield made


def _measured(recording: Recording, size: int, making: float | None, opening: float) -> list[tuple[str, ...]]:
    """The rows of one column: what was measured, the figure, and the target with whether it is kept."""
    worked_out, _ = timed(lambda: (recording.derivation, recording.findings()))
    if making is None:
        recording.verify()  # a small step is told with its proof, which is measured elsewhere
    documents: list[Document] = []
    reported, reporting = timed(lambda: documents.append(recording.document(pointing=True)))
    texts: list[str] = []
    written, writing = timed(lambda: texts.append(page.written(documents[0])))
    return [
        ("derivation and findings, seconds", f"{worked_out:.2f}", ""),
        ("report, seconds", f"{reported:.2f}", ""),
        ("page, seconds", f"{written:.2f}", ""),
        ("report and page, seconds", *against(reported + written, making)),
        ("the same, processor time", f"{reporting + writing:.2f}", ""),
        ("bytes", *_bytes(len(texts[0].encode()), size)),
        *_in_a_browser(texts[0], opening),
    ]


def _bytes(measured: int, target: int) -> tuple[str, str]:
    return f"{measured:,}", f"{target:,} {'✓' if measured <= target else '✗ missed'}"


def _in_a_browser(text: str, target: float) -> list[tuple[str, ...]]:
    """Seconds until the page can be used, and the frames while it is scrolled from top to bottom, all unfolded."""
    names = (
        "interactive after, seconds",
        "frames while scrolling, median ms",
        "95 of 100 within, ms",
        "the longest, ms",
    )
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [(name, "needs playwright", "") for name in names]
    if chromium is None:
        return [(name, "needs chromium", "") for name in names]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        opened, frames = _opened(browser, file.as_uri())
        browser.close()
    slow = sorted(frames)
    figures = (
        (f"{median(slow):.0f}", f"{slow[int(0.95 * len(slow))]:.0f}", f"{slow[-1]:.0f}") if slow else ("none",) * 3
    )
    return [
        (names[0], *against(opened, target)),
        *((name, each, "") for name, each in zip(names[1:], figures, strict=True)),
    ]


def _opened(browser: Any, address: str) -> tuple[float, list[float]]:
    ready = []
    for _ in range(OPENED):
        view = browser.new_page(viewport={"width": 1400, "height": 900})
        view.goto(address)
        view.wait_for_selector("html[data-ready]", timeout=60_000)
        ready.append(int(view.get_attribute("html", "data-ready")) / 1e3)
        if len(ready) == OPENED and view.is_visible("#unfold"):
            view.click("#unfold")
        frames = view.evaluate(SCROLL) if len(ready) == OPENED else []
        view.close()
    return median(ready), frames
