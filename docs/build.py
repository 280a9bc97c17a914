"""Builds the documentation site into build/site: `python docs/build.py`.

1. chainrule itself writes the live pages, from the scripts in docs/live.
2. Sphinx builds the site; a warning is an error.
3. Every link and every anchor is looked up in what was built, and nothing may be loaded from elsewhere.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parent.absolute()
ROOT = DOCS.parent
SITE = ROOT / "build" / "site"
LIVE = ROOT / "build" / "extra" / "live"

# What is run for each live page. PAGE is the file to write.
STEP = ["-m", "chainrule", "run", "--stop", "-o", "PAGE"]
PAGES = {
    "worked": ["-m", "chainrule", "demo", "--html", "PAGE"],
    "sgd": ["-m", "chainrule", "demo", "--optimizer", "sgd", "--html", "PAGE"],
    "wrong": [*STEP, "wrong.py"],
    "mlp": [*STEP, "--step", "2", "mlp.py"],
    "cnn": [*STEP, "cnn.py"],
    "lstm": [*STEP, "lstm.py"],
    "attention": [*STEP, "attention.py"],
    "gan": ["gan.py", "PAGE"],
    "published": ["-m", "tests.published", "PAGE"],
}
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def write_live_pages() -> None:
    """Every page of PAGES, and the page of a run."""
    LIVE.mkdir(parents=True, exist_ok=True)
    for name, arguments in PAGES.items():
        run(*(str(LIVE / f"{name}.html") if each == "PAGE" else each for each in arguments))
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/run.db"
        run("-m", "chainrule", "watch", "training.py", "--every", "1", "--plain", "--to", database)
        run("-m", "chainrule", "show", database, "-o", str(LIVE / "run.html"))


def run(*arguments: str) -> None:
    """Run Python in the folder of the scripts, with this chainrule."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=DOCS / "live", env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"python {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


class Page(HTMLParser):
    """The anchors, the links, and what is loaded, of one page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what this element names and points to."""
        found = dict(attributes)
        self.anchors |= {found.get("id") or "", found.get("name") or ""}
        address = found.get(LOADED.get(tag, "href"))
        if address:
            self.links.append(address)
        if address and tag in LOADED and found.get("rel") not in ("canonical", "license"):
            self.loaded.append(address)


def problems(site: Path) -> Iterator[str]:
    """Each link that leads nowhere, and each thing that would be loaded from elsewhere."""
    pages = {file: Page(file) for file in site.rglob("*.html") if file.parent.name != "live"}
    for file, page in pages.items():
        name = file.relative_to(site)
        yield from (f"{name} loads {each}" for each in page.loaded if urlsplit(each).scheme not in ("", "data"))
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif parts.fragment and not has_anchor(target, unquote(parts.fragment), pages):
                yield f"{name} links to {link}, and {target.name} has no {parts.fragment}"


def has_anchor(file: Path, anchor: str, pages: dict[Path, Page]) -> bool:
    """Whether a page has this anchor; a live page makes its own from its data, which are compressed or not."""
    if file in pages:
        return anchor in pages[file].anchors
    text = file.read_text(encoding="utf-8")
    packed = re.search(r'id="data">([A-Za-z0-9+/=]+)</script>', text)
    return f'"{anchor}"' in (zlib.decompress(base64.b64decode(packed[1])).decode() if packed else text)


def main() -> None:
    """Build the site, and exit with 1 and a list if something is wrong."""
    write_live_pages()
    shutil.rmtree(SITE, ignore_errors=True)
    run("-m", "sphinx", "-E", "-q", "-W", "--keep-going", str(DOCS), str(SITE))
    found = dict.fromkeys(problems(SITE))
    if found:
        sys.exit("\n".join(found))
    print(f"{len(list(SITE.rglob('*.html')))} pages: open {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
