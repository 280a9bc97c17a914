"""How the page shows one number, the user's lines, the tour, the search and the picture, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule.document import Document
from chainrule.views import written
from tests.browser import lab_steps
from tests.test_numbers import number

pytestmark = pytest.mark.slow  # the browser alone takes seconds to start
AXE = "the accessibility test needs axe-core: pip install axe-playwright-python"


class Heads(nn.Module):
    """Attention by hand: `q @ k.transpose(-2, -1)` runs seven operations."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return weights @ v


@pytest.fixture(scope="module")
def heads() -> Document:
    torch.manual_seed(0)
    model = Heads()
    with chainrule.record() as recording:
        F.mse_loss(model(torch.randn(2, 3, 4)), torch.randn(2, 3, 4)).backward()
    return recording.document(pointing=True)


@pytest.fixture(scope="module")
def cnn() -> Document:
    torch.manual_seed(0)
    return lab_steps.cnn().record().document(pointing=True)


def row_named(document: Document, name: str) -> Any:
    return next(row for row in document.rows if row.name == name)


def lit(page: Any, mark: str = "used") -> set[str]:
    return {each.get_attribute("data-source") for each in page.query_selector_all(f".closeup td.{mark}")}


def test_a_row_and_a_column_meet_at_the_number_and_follow_the_pointer(open_page, worked):
    page = open_page(worked, "#forward-1")
    x, w, b, z = (row_named(worked, name).index for name in ("X", "W1", "b1", "Z1"))
    assert page.locator(".closeup.crossed").count() == 1
    assert lit(page, "here") == {f"{z} value 0,0"}
    page.hover(f'.closeup [data-source="{z} value 1,2"]')
    assert lit(page, "here") == {f"{z} value 1,2"}
    assert lit(page) == {f"{x} value 1,0", f"{x} value 1,1", f"{w} value 2,0", f"{w} value 2,1", f"{b} value 2"}
    assert page.inner_text(".closeup figcaption").startswith("Z1[1,2] = X[1,0] * W1[2,0] + X[1,1] * W1[2,1] + b1[2]")
    left, above = (page.locator(f".closeup .{place} td.used").first.bounding_box() for place in ("left", "above"))
    own = page.locator(".closeup .own td.here").bounding_box()
    assert left["y"] == pytest.approx(own["y"], abs=2)  # the row of X is beside it
    assert above["x"] == pytest.approx(own["x"], abs=8)  # the column of W1 transposed is above it
    page.keyboard.press("Escape")
    page.focus(f'.closeup [data-source="{z} value 0,0"]')
    page.keyboard.press("ArrowRight")
    assert lit(page, "here") == {f"{z} value 0,1"}


def test_a_convolution_has_its_window_and_a_pooling_its_winner(open_page, cnn):
    page = open_page(cnn, "#forward-1")
    x, z, pooled, relu = (row_named(cnn, name) for name in ("x", "Z1", "max_pool2d", "relu"))
    window = {f"{x.index} value 0,0,{i},{j}" for i in range(3) for j in range(3)}
    assert window <= lit(page)
    assert lit(page, "here") == {f"{z.index} value 0,0,1,1"}  # the first one whose window lies inside the image
    page.evaluate("location.hash = '#forward-4'")
    page.wait_for_selector(".closeup .chosen")
    entries = relu.value.entries
    winner = max(range(36), key=lambda place: entries[place] if place // 6 < 2 and place % 6 < 2 else -1)
    assert lit(page, "chosen") == {f"{relu.index} value 0,0,{winner // 6},{winner % 6}"}
    assert page.locator("svg.arrows path").count() == 1
    sums = {s.of.index: s for s in cnn.sums if (s.of.row, s.of.role) == (pooled.index, "value")}
    tied = next(index for index, found in sums.items() if len(found.chosen) > 1)
    page.hover(f'#step .tensor [data-source="{pooled.index} value {",".join(map(str, tied))}"]')
    assert "A tie" in page.inner_text(".closeup figcaption")
    assert page.locator("svg.arrows path").count() == len(sums[tied].chosen)


def test_a_pooling_of_a_large_map_has_its_window_in_numbers_and_its_winner(open_page):
    x = torch.arange(300.0).reshape(1, 1, 10, 30).requires_grad_()
    with chainrule.record() as recording:
        F.max_pool2d(x, (2, 5)).sum().backward()
    page = open_page(recording.document(pointing=True), "#forward-1")
    window = page.locator(".closeup td.used").evaluate_all(
        "cells => cells.map((cell) => Number(cell.title || cell.textContent))"
    )
    assert sorted(window) == [0, 1, 2, 3, 4, 30, 31, 32, 33, 34]
    assert page.locator(".closeup td.chosen").count() == 1
    assert page.locator("svg.arrows path").count() == 1


def test_where_a_factor_of_a_loss_comes_from_and_how_a_later_step_was_checked_is_said(open_page, cnn):
    loss = next(row for row in cnn.rows if row.kind == "loss")
    updated = next(row.updates[0] for row in cnn.rows if row.updates)
    page = open_page(cnn, f"#{loss.forward}")
    said = page.inner_text("#step")
    assert "the mean of the" in said  # hence 1/n
    assert "the probability of each class" in said
    for anchor, words in (
        ("backward-2-input", "central differences of this operation"),
        (updated, "Tolerance: two last"),
    ):
        page.evaluate(f"location.hash = '#{anchor}'")
        page.wait_for_selector(f'#step [data-anchor="{anchor}"]')
        how = page.locator("#step details.how summary")
        if how.count():  # at the first step of a phase it stands above
            how.click()
        assert words in page.inner_text("#step")


def test_on_a_phone_the_head_is_whole_and_the_step_is_below_the_bar(open_page, worked):
    page = open_page(worked, "#forward-1")
    page.set_viewport_size({"width": 390, "height": 844})
    heights = page.evaluate(
        "(({ scrollHeight, clientHeight }) => [scrollHeight, clientHeight])(document.querySelector('#summary'))"
    )
    assert heights[0] <= heights[1]
    page.click("#next")
    bar, step = (page.locator(each).bounding_box() for each in ("nav", "#step"))
    assert step["y"] >= bar["y"] + bar["height"] - 0.5


def test_a_line_of_code_is_one_row_and_one_step(open_page, heads):
    page = open_page(heads, "#forward-1")
    codes = [code for code in page.locator("li.row code").all_inner_texts() if code.startswith("q @ k")]
    assert codes == ["q @ k.transpose(-2, -1)", "q @ k.transpose(-2, -1) / 2"]
    product, q = row_named(heads, "matmul@1"), row_named(heads, "q")
    line = page.locator(f'li[data-row="{product.index}"]')
    assert "6 layout steps" in line.inner_text()
    for _ in range(3):  # q, k, v, and the product: its layout steps are passed
        page.keyboard.press("ArrowRight")
    assert "bmm" in page.inner_text("#step h2")
    assert page.get_attribute("li.current", "data-row") == str(product.index)
    assert page.inner_text(".closeup figcaption").startswith("matmul@1[0,0,0] = q[0,0,0] * k[0,0,0] + ")
    assert f"{q.index} value 0,0,3" in lit(page)
    rows = page.locator("li.row").count()
    line.locator("button").focus()
    page.keyboard.press("Enter")
    assert page.locator("li.row").count() == rows + 6
    page.click("#step details summary")
    page.locator("#step details a").first.click()
    assert page.inner_text("#position") == "layout step"
    page.click(f'li[data-row="{q.index}"] .back a')  # its gradient is computed by the product, not by a view
    assert page.inner_text("#step h2") == "dJ/dmatmul.view@1"
    assert page.get_attribute("li.current", "data-row") == str(q.index)
    assert page.inner_text(".closeup figcaption").startswith("dJ/dq[0,0,0] = dJ/dmatmul@1[0,0,0] * k[0,0,0] + ")


def test_the_tour_has_six_stops_and_is_not_in_the_way(open_page, worked):
    page = open_page(worked)
    assert page.locator("#tour li").count() == 6
    page.click("#tour-next")
    for place in range(6):
        here = page.locator("#tour [aria-current]").inner_text()
        assert page.inner_text("#tour strong").startswith(here)
        if here == "A zero":
            assert page.inner_text("#why").startswith("dJ/d")
        page.keyboard.press("Enter")  # the button for the next stop has the focus
        assert page.is_hidden("#tour") == (place == 5)
    page.keyboard.press("?")
    assert page.is_visible("#legend")
    page.click("#legend-tour")
    assert page.is_visible("#tour")
    page.goto(page.url.partition("#")[0])
    page.wait_for_selector("html[data-ready]")
    assert page.is_hidden("#tour")  # it was closed once
    assert open_page(worked, "#forward-2").is_hidden("#tour")


def test_the_search_finds_numbers_and_findings_and_enter_goes_there(open_page, worked):
    page = open_page(worked, "#forward-1")
    row = row_named(worked, "A3")
    page.keyboard.press("/")
    page.keyboard.type(number(row.value.entries[0])[:6])
    assert page.locator("li.row").count() >= 1
    page.keyboard.press("Enter")
    assert page.inner_text("#why").startswith("A3[0,0]")
    assert page.inner_text("#step h2").startswith(f"Forward {row.forward.partition('-')[2]}: A3")
    page.fill("#search", "dJ/dW2")
    page.keyboard.press("Enter")
    assert page.inner_text("#step h2") == "dJ/dW2"
    page.fill("#search", worked.sections[-1].sections[0].title[0].partition(":")[0])
    assert page.locator("#rows li.found a").count() >= 1
    page.keyboard.press("Enter")
    assert page.url.endswith("#findings")
    page.go_back()
    page.wait_for_selector("#step h2:has-text('dJ/dW2')")
    page.go_back()
    page.wait_for_selector("#step h2:has-text('A3')")


def test_the_picture_fits_zooms_leads_on_and_follows(open_page, worked):
    page = open_page(worked, "#forward-1")
    page.click("#tab-picture")
    box, pane = (page.locator(each).bounding_box() for each in ("#picture svg", "#picture"))
    assert box["x"] >= pane["x"]
    assert box["x"] + box["width"] <= pane["x"] + pane["width"] + 1
    whole = page.get_attribute("#picture svg", "viewBox")
    page.click("[aria-label='zoom in']")
    page.click("[aria-label='zoom in']")
    closer = page.get_attribute("#picture svg", "viewBox")
    assert float(closer.split()[2]) < float(whole.split()[2])
    loss = worked.rows[-1]
    page.evaluate("location.hash = '#forward-7'")
    page.wait_for_selector(f"#picture .current[data-row='{loss.index}']")
    assert page.get_attribute("#picture svg", "viewBox") != closer  # it was out of sight
    page.click("text=fit")
    assert page.get_attribute("#picture svg", "viewBox") == whole
    page.focus("#picture a[aria-label=A2]")
    page.keyboard.press("Enter")
    assert page.inner_text("#step h2").startswith("Forward 4: A2")


def test_an_update_marks_its_parameter(open_page, worked):
    page = open_page(worked, "#update-1-2")
    assert page.get_attribute("li.current", "data-row") == str(row_named(worked, "W2").index)


def test_on_a_phone_the_sum_is_a_sheet_and_next_goes_to_the_step(open_page, worked):
    page = open_page(worked, "#backward-5-weight")
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.click("#next")
    top = page.locator("#step h2").bounding_box()["y"]
    assert page.locator("nav").bounding_box()["height"] - 1 <= top < 500
    page.locator("#step .closeup td.here").click()
    sheet = page.locator("#why").bounding_box()
    assert sheet["y"] + sheet["height"] == pytest.approx(800, abs=1)
    assert sheet["width"] == pytest.approx(390, abs=1)


def test_what_is_not_printed_is_said(open_page, worked):
    many = replace(worked.sections[1], sections=worked.sections[1].sections * 30)
    sections = tuple(
        replace(each, anchor=f"{each.anchor}-{place}") if place else each for place, each in enumerate(many.sections)
    )
    page = open_page(replace(worked, sections=(replace(many, sections=sections),)))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert "210 steps" in page.inner_text("#printed")
    assert page.is_visible("#step")


def test_an_lstm_has_its_gates_step_by_step_and_what_comes_back(open_page):
    torch.manual_seed(0)
    document = lab_steps.lstm().record().document(pointing=True)
    anchors = {
        s.anchor: s for _, s in document.walk() if any("what comes back" in getattr(b, "label", "") for b in s.blocks)
    }
    assert anchors
    page = open_page(document, "#forward-5")
    heads = page.locator("#step .labelled").first.locator("tr").first.locator("th").all_inner_texts()
    assert heads == ["i", "f", "g", "o", "c", "h"]
    assert page.locator("#step .labelled").first.locator("th[scope=row]").all_inner_texts() == [
        "t = 0",
        "t = 1",
        "t = 2",
    ]


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention", "lstm"])
def test_a_page_with_its_lab_is_small(name):
    torch.manual_seed(0)
    document = lab_steps.STEPS[name]().record().document(pointing=True, running=True)
    assert document.program is not None
    assert len(written(document, ".html").encode()) < 450_000


@pytest.mark.parametrize("width", [400, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(open_page, heads, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=AXE, exc_type=ImportError).Axe()
    page = open_page(heads, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for fragment, button in (
        ("", "#help"),
        ("#forward-9", "#step details summary"),
        ("#backward-18-self", "#tab-picture"),
    ):
        page.evaluate("hash => { document.getElementById('legend').close(); location.hash = hash; }", fragment)
        page.click(button)
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


class Projected(nn.Module):
    """Names that are longer than those of numbered layers."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.recurrent(x)[0][:, -1])


def test_a_grid_with_long_labels_is_scrolled_with_keys_on_a_phone(open_page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=AXE, exc_type=ImportError).Axe()
    torch.manual_seed(0)
    model = Projected()
    with chainrule.record() as recording:
        model(torch.randn(2, 3, 2)).square().mean().backward()
    page = open_page(recording.document(pointing=True), "#backward-3-weight")
    page.set_viewport_size({"width": 390, "height": 900})
    assert "out.weight[0,2]" in page.locator("#step .labelled th").all_inner_texts()
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
