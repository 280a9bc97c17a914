"""Pictures of the page, to be looked at and for the README: `python -m tests.browser.screenshots FOLDER`.

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
from chainrule.views import page as view
from tests.browser.conftest import FLAGS
from tests.browser.transformer import Transformer

SHOTS = (  # name, document, fragment, tab, what is pointed at, colour scheme, width, height
    ("walk", "worked", "#backward-5-weight", "mirror", None, "light", 1440, 900),
    ("why", "worked", "#backward-7-weight", "mirror", '#rows [data-source="1 gradient 1,0"]', "dark", 1440, 900),
    ("overview", "worked", "#finding-1", "overview", None, "light", 1440, 900),
    ("picture", "worked", "#forward-3", "picture", None, "dark", 1440, 900),
    ("narrow", "worked", "#backward-4-self", "mirror", None, "light", 420, 1600),
    ("transformer", "transformer", "#forward-14", "mirror", None, "light", 1440, 900),
    ("transformer-overview", "transformer", "#backward-30", "overview", None, "dark", 1440, 900),
    ("transformer-narrow", "transformer", "#backward-30", "mirror", None, "dark", 420, 1600),
)


def worked() -> Document:
    """The worked example, told."""
    model, loss, optimizer = worked_example.build()
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording.document(pointing=True)


def transformer() -> Document:
    """One step of a small hand-written transformer, told."""
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


def shoot(browser: Any, folder: Path) -> None:
    """Write every picture, and the two pages, into `folder`."""
    for name, document in (("worked", worked()), ("transformer", transformer())):
        (folder / f"{name}.html").write_text(view.render(document), encoding="utf-8")
    for name, document_name, fragment, tab, pointed, scheme, width, height in SHOTS:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto((folder / f"{document_name}.html").absolute().as_uri() + fragment)
        page.wait_for_selector("html[data-ready]")
        page.click(f"#tab-{tab}")
        if pointed:
            page.hover(pointed)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(300)
        page.screenshot(path=folder / f"{name}.png")
        page.close()


def main() -> None:
    """Make the folder that is named, and fill it."""
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shoot(browser, folder)
        browser.close()


if __name__ == "__main__":
    main()
