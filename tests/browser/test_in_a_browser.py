"""The page in a real browser, with keys and mouse, as a reader uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import chainrule
from chainrule.document import Document, Histogram, Paragraph, Row, Section, Sketch, Source, Sum, Summand, Tensor
from chainrule.views import written
from tests.browser.large import large
from tests.browser.transformer import Transformer
from tests.test_numbers import number
from tests.views import hostile

pytestmark = pytest.mark.slow  # the browser alone takes seconds to start
AXE = "the accessibility test needs axe-core: pip install axe-playwright-python"


def title(page: Any) -> str:
    return page.inner_text("#step h2")


def test_the_walk_goes_from_the_setting_to_the_update_with_arrow_keys(open_page, worked):
    page = open_page(worked)
    met = [title(page)]
    while page.is_enabled("#next"):
        page.keyboard.press("ArrowRight")
        met.append(title(page))
    assert met[0] == "Setup"
    assert [each.split(":")[0] for each in met[1:8]] == [f"Forward {i}" for i in range(1, 8)]
    assert met[8:12] == ["dJ/dL", "dJ/dA3", "dJ/dZ3", "dJ/dA2"]
    assert met[-2].startswith("b3")
    page.keyboard.press("ArrowLeft")
    assert title(page) == met[-2]


def test_buttons_walk_and_the_address_names_the_step(open_page, worked):
    page = open_page(worked)
    page.click("#next")
    page.click("#next")
    assert page.url.endswith("#forward-2")
    page.click("#previous")
    assert page.url.endswith("#forward-1")
    page.click("#phases button:has-text('Loss')")
    assert title(page).startswith("Forward 7: J")


def test_a_link_opens_at_its_step(open_page, worked):
    page = open_page(worked, "#backward-5-weight")
    assert title(page) == "dJ/dW2"
    assert page.get_attribute("li.current", "data-row") == str(next(r.index for r in worked.rows if r.name == "W2"))
    page.evaluate("location.hash = '#forward-3'")
    page.wait_for_selector("#step h2:has-text('Forward 3')")


def test_play_walks_by_itself(open_page, worked):
    page = open_page(worked)
    page.clock.install()
    page.click("#play")
    page.clock.run_for(5000)
    assert page.inner_text("#position").startswith("3 of")
    page.click("#play")
    page.clock.run_for(5000)
    assert page.inner_text("#position").startswith("3 of")


def test_on_a_phone_no_verdict_is_cut_off(open_page, worked):
    page = open_page(worked, "#backward-4-self")
    page.set_viewport_size({"width": 390, "height": 900})
    words = page.locator(".verdict strong")
    assert words.all_inner_texts() == ["agrees", "by convention"]
    for place in range(words.count()):
        box = words.nth(place).bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    height = "(e) => e.closest('#summary') ? NaN : e.scrollHeight - e.clientHeight"
    assert page.locator("#verdict .verdict").evaluate(height) <= 0


def test_every_number_on_the_page_is_the_documents(open_page, worked):
    page = open_page(worked)
    for _, section in worked.walk():
        page.evaluate("anchor => location.hash = '#' + encodeURIComponent(anchor)", section.anchor)
        shown = page.locator(f'#step [data-anchor="{section.anchor}"]')
        if not shown.count():  # a heading, which has no stop of its own
            continue
        expected = [number(entry) for b in section.blocks if isinstance(b, Tensor) for entry in _with_margins(b)]
        assert shown.locator(".tensor td.number").all_inner_texts() == expected


def _with_margins(block: Tensor) -> Iterator[Any]:
    """A tensor's numbers; for a Jacobian then those at its margins, which are rows of their own on a page."""
    yield from block.entries or ()
    for margin in (block.upstream, block.product):
        yield from margin.entries if margin else ()


def test_the_value_table_has_each_value_beside_its_gradient(open_page, worked):
    page = open_page(worked)
    for row in worked.rows:
        line = page.locator(f'li[data-row="{row.index}"]')
        for side, block in (("value", row.value), ("gradient", row.gradient)):
            expected = [] if block is None else [number(entry) for entry in block.entries or ()]
            assert line.locator(f".side.{side} td").all_inner_texts() == expected
    page.click('li[data-row="8"] .side.gradient .grids', position={"x": 1, "y": 1})
    page.locator("li.row a", has_text="A").first.click()
    assert title(page).startswith("Forward 2: A1")


def test_the_switch_shows_one_way_at_a_time(open_page, worked):
    page = open_page(worked, "#backward-5-weight")
    labels = lambda: page.locator("#step .label").all_inner_texts()  # noqa: E731
    assert "product" in labels()
    assert "what PyTorch runs" in labels()
    page.check("input[value=jacobian]")
    assert "product" in labels()
    assert "what PyTorch runs" not in labels()
    page.check("input[value=product]")
    assert "product" not in labels()
    assert "what PyTorch runs" in labels()
    assert page.locator("#step .jacobian").count() == 0
    page.click("#phases button:has-text('Forward')")
    assert page.is_hidden("#ways")


def test_pointing_at_a_number_lights_up_what_made_it_and_a_click_walks_on(open_page, worked):
    page = open_page(worked)
    row = next(row for row in worked.rows if row.name == "W1")
    made = next(s for s in worked.sums if (s.of.row, s.of.role, s.of.index) == (row.index, "gradient", (1, 0)))
    page.hover(f'#rows [data-source="{row.index} gradient 1,0"]')
    assert page.inner_text("#why").startswith("dJ/dW1[1,0]")
    assert made.text in page.inner_text("#why")
    lit = {cell.get_attribute("data-source") for cell in page.query_selector_all("#rows .lit")}
    assert lit == {f"{s.row} {s.role} {','.join(map(str, s.index))}" for t in made.summands for s in t.sources}
    page.click(f'#rows [data-source="{row.index} gradient 1,0"]')
    page.locator("#why .factor.gradient").first.click()
    assert title(page) == "dJ/dZ1"
    assert page.evaluate("document.activeElement.dataset.source").endswith("gradient 0,1")
    page.keyboard.press("Escape")
    assert page.is_hidden("#why")


def test_arrow_keys_go_from_number_to_number(open_page, worked):
    page = open_page(worked, "#backward-7-weight")
    page.focus('#rows [data-source="1 value 0,0"]')
    for key, expected in (("ArrowDown", "1,0"), ("ArrowRight", "1,1"), ("ArrowUp", "0,1"), ("ArrowLeft", "0,0")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.source") == f"1 value {expected}"
    assert title(page) == "dJ/dW1"


def test_modules_fold_and_names_are_searched(open_page, worked):
    page = open_page(worked)
    assert page.locator("li.row").count() == len(worked.rows)
    page.click("button.fold[data-path=linear1]")
    assert page.locator("li.row").count() == len(worked.rows) - 3
    assert page.get_attribute("button.fold[data-path=linear1]", "aria-expanded") == "false"
    page.evaluate("location.hash = '#backward-7-weight'")  # the walk unfolds what hides its row
    page.wait_for_selector("li.current[data-row='1']")
    page.keyboard.press("/")
    page.keyboard.type("relu")
    assert page.locator("li.row").count() == 2
    page.fill("#search", "nothing like that")
    assert page.inner_text("#rows") == "No value has that name or number."


def test_repeated_blocks_are_folded_at_first(open_page):
    page = open_page(large(3))
    folded = [each.get_attribute("data-path") for each in page.query_selector_all("li.folded .fold")]
    assert folded == ["h.1", "h.2"]
    page.click("#unfold")
    assert page.locator("li.folded").count() == 0


def test_the_path_below_a_fraction_is_not_cut(open_page):
    page = open_page(large(3))
    page.click("#unfold")
    cut = page.eval_on_selector_all(
        "li.row .back", "some => some.filter((each) => each.scrollWidth > each.clientWidth).length"
    )
    assert cut == 0


def test_light_and_dark(open_page, worked):
    page = open_page(worked, color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) != dark
    page.click("#theme")
    assert page.evaluate(paper) == dark


def test_the_overview_has_a_line_a_module_and_links_findings_to_rows(open_page, worked):
    page = open_page(worked)
    page.click("#tab-overview")
    names = page.locator("#overview tbody th").all_inner_texts()
    assert [name for name in names if name.startswith("linear")] == ["linear1", "linear2", "linear3"]
    page.locator(".findings .chip").first.click()
    assert page.get_attribute("#tab-values", "aria-selected") == "true"
    found = next(s for _, s in worked.walk() if s.anchor == "finding-1")
    named = next(span.source for span in found.title if not isinstance(span, str))
    assert page.get_attribute("li.current", "data-row") == str(next(r.index for r in worked.rows if r.name == named))


def test_the_picture_opens_in_its_tab(open_page, worked):
    page = open_page(worked)
    page.click("#tab-picture")
    assert page.locator("#picture svg").count() == 1
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#overview")


def test_a_large_tensor_is_a_heat_map_a_histogram_and_statistics(open_page):
    sketch = Sketch(2, 3, (-1.0, 0.0, 0.5, 1.0, 0.25, float("nan")))
    block = Tensor(
        "W", (200, 300), "float32", "gradient", None, (("norm", 2.5),),
        histogram=Histogram(-1.0, 1.0, (1, 5, 2)), sketch=sketch,
    )  # fmt: skip
    section = Section(("one",), "one", "backward", (block,))
    page = open_page(Document(("large",), (), (section,)))
    assert page.inner_text("dl.statistics dd") == "2.5000" or page.inner_text("dl.statistics dd") == "2.5"
    assert page.locator(".histogram rect").count() == 3
    width = page.evaluate("document.querySelector('.heat canvas').clientWidth")
    page.click("text=+")
    assert page.evaluate("document.querySelector('.heat canvas').clientWidth") == pytest.approx(2 * width, rel=0.1)


def test_a_large_tensor_explains_the_elements_that_were_kept(open_page):
    document = large(1)
    row = next(row for row in document.rows if row.kind == "parameter")
    source = Source(row.index, "gradient", (0, 3, 5))
    kept = Sum(source, "the whole sum", (Summand(0.5, (("x[3]", 2.0), ("g", 0.25)), (Source(0, "value", (3,)),)),))
    page = open_page(replace(document, sums=(kept,)), f"#{row.backward[0]}")
    page.locator("#step .chip", has_text="[0, 3, 5]").first.click()
    assert page.inner_text("#why code") == f"dJ/d{row.name}[0,3,5]"
    assert "x[3] (2)" in page.inner_text("#why")
    page.locator("#why .factor").click()
    assert page.get_attribute("li.current", "data-row") == "0"


@pytest.mark.parametrize("name", hostile.NAMES, ids=range(len(hostile.NAMES)))
def test_no_name_breaks_out(open_page, name):
    document = hostile.document(name)
    page = open_page(document)
    while page.is_enabled("#next"):
        page.click("#next")
    if page.is_visible("#tab-picture"):
        page.click("#tab-picture")
    page.click("#tab-overview")
    assert page.locator("img, iframe, b:not(.directions b)").count() == 0
    assert page.locator("script").count() == 2


def test_the_policy_would_stop_what_got_in(open_page, worked):
    page = open_page(worked)
    stopped = page.evaluate(
        """() => {
          try { document.body.innerHTML = "<img src=x onerror=alert(1)>"; return false } catch { return true }
        }"""
    )
    assert stopped
    assert "requires 'TrustedHTML'" in open_page.heard.pop()
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, worked, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=AXE, exc_type=ImportError).Axe()
    page = open_page(worked, "#backward-5-weight", color_scheme=scheme)
    page.hover('#rows [data-source="1 gradient 1,0"]')
    for tab in ("values", "overview", "picture"):
        page.click(f"#tab-{tab}")
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()


def test_the_worked_example_is_small(open_page, worked):
    assert len(written(worked, ".html").encode()) < 400_000
    assert int(open_page(worked).get_attribute("html", "data-ready")) > 0  # benchmarks/page.py says how soon


def test_a_large_step_is_small_and_fills_its_lines_as_they_are_scrolled_to(open_page):
    document = large()
    assert len(written(document, ".html").encode()) < 4_000_000
    page = open_page(document)
    page.click("#unfold")
    last = f'li[data-row="{len(document.rows) - 1}"]'
    assert page.locator(f"{last} .name").count() == 0
    page.evaluate("document.querySelector('#values').scrollTop = 1e9")
    page.wait_for_selector(f"{last} .name")


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    model = Transformer(vocabulary=11, width=16, heads=2, layers=4)
    tokens, targets = torch.randint(11, (1, 6)), torch.randint(11, (6,))
    with chainrule.record() as recording:
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets)
        loss.backward()
    return recording.document(pointing=True)


def test_a_row_of_a_block_that_is_told_once_brings_its_own_numbers(open_page, deep):
    page = open_page(deep)
    row = next(row for row in deep.rows if row.module == "h.2.attn.c_attn" and row.kind == "operation")
    told = next(row for row in deep.rows if row.module == "h.0.attn.c_attn" and row.kind == "operation")
    page.evaluate(f"location.hash = '#{row.forward}@{row.index}'")
    page.wait_for_selector("#step .instead")
    assert f"The numbers of {row.name} in h.2.attn.c_attn" in page.inner_text("#step .instead")
    norm = next(number(figure) for name, figure in row.value.statistics if name == "norm")
    assert norm in page.locator("#step .instead dd").all_inner_texts()
    assert title(page).startswith(f"Forward {row.forward.removeprefix('forward-')}: {told.name}")
    assert page.get_attribute("li.current", "data-row") == str(row.index)
    page.click(f"li[data-row='{row.index}'] .side.gradient")
    assert page.url.endswith(f"#{row.backward[0]}@{row.index}")
    page.click("#next")
    assert page.locator("#step .instead").count() == 0


def test_blocks_that_are_told_once_stand_in_tables(open_page, deep):
    page = open_page(deep, "#backward-alike-1")
    assert page.locator("#step tbody tr code").all_inner_texts() == ["h.3", "h.2", "h.1", "h.0"]
    told = next(row for row in deep.rows if row.module == "h.0.ln_1" and row.kind == "operation")
    page.evaluate(f"location.hash = '#{told.forward}'")
    page.wait_for_selector("#step tbody code:has-text('h.3')")


def test_one_number_of_a_large_gradient_is_explained(open_page, deep):
    row = next(row for row in deep.rows if row.name == "h.0.attn.c_attn.weight")
    made = next(s for s in deep.sums if (s.of.row, s.of.role) == (row.index, "gradient"))
    page = open_page(deep, f"#{row.backward[0]}")
    page.locator("#step .chip").first.click()
    assert made.text in page.inner_text("#why")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_folded_step(open_page, deep, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=AXE, exc_type=ImportError).Axe()
    row = next(row for row in deep.rows if row.module == "h.2.mlp.1" and row.kind == "operation")
    page = open_page(deep, f"#{row.forward}@{row.index}", color_scheme=scheme)
    for tab in ("values", "overview"):
        page.click(f"#tab-{tab}")
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()


def test_it_prints_every_step(open_page, worked):
    page = open_page(worked)
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    text = page.inner_text("#printed")
    assert all(each in text for each in ("Forward 1", "dJ/dW1", "b3"))
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.inner_text("#printed") == ""


def test_it_works_in_the_sandboxed_frame_of_a_notebook(open_page, worked, browser):
    page = open_page(Document(("around",), (), (Section(("x",), "x", "note", (Paragraph(("x",)),)),)))
    page.evaluate("document.head.querySelector('meta[http-equiv]').remove()")
    context = browser.new_context()
    outer = context.new_page()
    errors: list[str] = []
    outer.on("pageerror", lambda error: errors.append(str(error)))
    outer.set_content("<iframe sandbox='allow-scripts' style='width:100%;height:800px'></iframe>")
    outer.evaluate("html => document.querySelector('iframe').srcdoc = html", written(worked, ".html"))
    frame = outer.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    frame.locator("#next").click()
    frame.locator("li.row a").first.click()
    assert frame.locator("#step h2").inner_text() != "Setup"
    assert errors == []
    context.close()


def test_lanes_join_where_a_value_is_used(open_page):
    def row(index: int, inputs: tuple[int, ...]) -> Row:
        value = Tensor(f"x_{{{index}}}", (1,), "float32", "value", (float(index),))
        gradient = rf"\frac{{\partial J}}{{\partial x_{{{index}}}}}"
        return Row(index, "operation", f"x{index}", value.symbol, gradient, "f", "f(x)", "", "", inputs, value, None)

    rows = (row(0, ()), row(1, (0,)), row(2, (1, 0)))  # the last adds the first: a skip connection
    page = open_page(Document(("skip",), (), (Section(("one",), "one", "forward"),), rows))
    paths = [page.locator(f'li[data-row="{i}"] path').count() for i in range(3)]
    assert paths == [1, 3, 2]  # out; through, in, out; two in
    dots = page.evaluate("[...document.querySelectorAll('.dot')].map(dot => parseFloat(dot.style.left))")
    assert dots[0] == dots[2] < dots[1]
    assert re.search(r"used 2 times", page.inner_text('li[data-row="0"]'))
