"""Pictures of the page, to be looked at and for the README: `python -m tests.browser.screenshots FOLDER [IMAGES]`.

The worked example and a small transformer, light and dark, wide and narrow; and what pointing at a number shows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import chainrule
from chainrule.document import Document
from chainrule.examples import worked_example
from chainrule.views import written
from tests.browser.conftest import FLAGS
from tests.browser.transformer import Transformer

SHOTS = (  # name, document, fragment, tab, what is pointed at, colour scheme, width, height
    ("walk", "worked", "#backward-5-weight", "values", None, "light", 1440, 900),
    ("why", "worked", "#backward-7-weight", "values", '#rows [data-source="1 gradient 1,0"]', "dark", 1440, 900),
    ("overview", "worked", "#finding-1", "overview", None, "light", 1440, 900),
    ("picture", "worked", "#forward-3", "picture", None, "dark", 1440, 900),
    ("narrow", "worked", "#backward-4-self", "values", None, "light", 420, 1600),
    ("transformer", "transformer", "#forward-14", "values", None, "light", 1440, 900),
    ("transformer-overview", "transformer", "#backward-30", "overview", None, "dark", 1440, 900),
    ("transformer-narrow", "transformer", "#backward-30", "values", None, "dark", 420, 1600),
)
KEPT = (  # for the README, into IMAGES
    ("demo", "worked", "#backward-7-weight", "values", '#rows [data-source="1 gradient 1,0"]', "light", 1440, 640),
    ("transformer", "transformer", "#backward-21-self", "values", None, "light", 1440, 860),
    ("overview", "transformer", "#forward-21", "overview", None, "dark", 1440, 860),
)


def worked() -> Document:
    """The worked example as a document."""
    model, loss, optimizer = worked_example.build()
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording.document(pointing=True)


def transformer() -> Document:
    """One step of a small hand-written transformer as a document."""
    torch.manual_seed(0)
    model = Transformer(vocabulary=11, width=8, heads=2, layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens, targets = torch.randint(11, (1, 5)), torch.randint(11, (1, 5))
    with chainrule.record() as recording:
        logits = model(tokens)
        loss = F.cross_entropy(logits.view(-1, 11), targets.view(-1))
        loss.backward()
        optimizer.step()
    return recording.document(pointing=True)


def shoot(browser: Any, folder: Path, images: Path | None = None) -> None:
    """Write every picture, and the two pages, into `folder`; with `images` also those that are kept, made small."""
    for name, document in (("worked", worked()), ("transformer", transformer())):
        (folder / f"{name}.html").write_text(written(document, ".html"), encoding="utf-8")
    for shot in SHOTS:
        _shoot(browser, folder, folder, *shot)
    for shot in KEPT if images is not None else ():
        _small(_shoot(browser, folder, images or folder, *shot))


def _shoot(
    browser: Any,
    pages: Path,
    folder: Path,
    name: str,
    document: str,
    fragment: str,
    tab: str,
    pointed: str | None,
    scheme: str,
    width: int,
    height: int,
) -> Path:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto((pages / f"{document}.html").absolute().as_uri() + fragment)
    page.wait_for_selector("html[data-ready]")
    page.click(f"#tab-{tab}")
    if pointed:
        page.hover(pointed)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    page.screenshot(path=folder / f"{name}.png")
    page.close()
    return folder / f"{name}.png"


def _small(file: Path) -> None:
    """The same picture in 128 colours, which no eye sees and which takes a third of the room."""
    try:
        from PIL import Image
    except ImportError:
        print(f"{file} is as large as the browser made it: pip install pillow", file=sys.stderr)
        return
    with Image.open(file) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Make the folders that are named, and fill them."""
    from playwright.sync_api import sync_playwright

    folders = [Path(each) for each in sys.argv[1:3]]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shoot(browser, *folders)
        browser.close()


if __name__ == "__main__":
    main()
