"""The documentation site, as `make docs` built it: every page in a real browser, and the check of its links."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"


@pytest.mark.slow
def test_every_page_loads_nothing_from_elsewhere_and_fits_three_widths(browser):
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        pytest.skip("the site is not built: make docs")
    heard, wide = [], []
    page = browser.new_page()
    page.on("console", lambda message: heard.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"{page.url}: {error}"))
    page.on("request", lambda asked: asked.url.startswith("file:") or heard.append(f"{page.url} asks {asked.url}"))
    for file in pages:
        page.goto(file.as_uri())
        for width in (1440, 900, 420):
            page.set_viewport_size({"width": width, "height": 900})
            if page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"):
                wide.append(f"{file.relative_to(SITE)} at {width}")
    page.close()
    assert heard == []
    assert wide == []


@pytest.mark.slow
def test_search_works_without_a_server(browser):
    if not SITE.exists():
        pytest.skip("the site is not built: make docs")
    page = browser.new_page()
    page.goto((SITE / "search.html").as_uri() + "?q=saturated")
    page.wait_for_selector("#search-results li a")
    assert "find/dead-units.html" in page.inner_html("#search-results")
    page.close()


def test_the_check_of_links_sees_what_is_wrong(tmp_path):
    spec = spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "a.html").write_text('{"forward-1": 1}')
    (tmp_path / "right.html").write_text(
        '<p id="here"><a href="#here">1</a><a href="live/a.html#forward-1">2</a><a href="https://example.org">3</a>'
    )
    assert list(build.problems(tmp_path)) == []
    (tmp_path / "wrong.html").write_text(
        '<a href="right.html#there">1</a><a href="none.html">2</a><iframe src="live/a.html#forward-2"></iframe>'
        '<script src="https://example.org/a.js"></script>'
    )
    assert list(build.problems(tmp_path)) == [
        "wrong.html loads https://example.org/a.js",
        "wrong.html links to right.html#there, and right.html has no there",
        "wrong.html links to none.html, which is not there",
        "wrong.html links to live/a.html#forward-2, and a.html has no forward-2",
    ]
