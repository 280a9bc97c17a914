"""The lab with PyTorch behind it, in a real browser: the served page, and the widget of a notebook."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import chainrule
from chainrule.live.server import LabServer

READY = '#lab[aria-busy="false"]'


@pytest.fixture(scope="module")
def large() -> chainrule.Recording:
    """A step with more numbers than the lab of an offline page takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with chainrule.record() as recording:
        nn.functional.cross_entropy(model(torch.randn(8, 64)), torch.randint(0, 10, (8,))).backward()
        optimizer.step()
    return recording


@pytest.fixture
def server(large: chainrule.Recording) -> Iterator[LabServer]:
    lab = large.lab()
    with LabServer(lab.page, lab.answer) as server:
        thread = threading.Thread(target=server.serve_until_idle, args=(60.0,))
        thread.start()
        yield server
        server.last = -1e9
        thread.join(10)


def test_the_served_page(browser: Any, server: LabServer) -> None:
    heard: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    own = server.address.partition("?")[0]
    page.on("request", lambda asked: asked.url.startswith(own) or heard.append(asked.url))
    page.goto(server.address)
    page.click("#tab-lab")
    page.wait_for_selector(READY)
    lab = page.locator("#lab")
    start = lab.locator("#lab-loss").inner_text()
    assert "Your Python code does not run again" in lab.inner_text()
    lab.get_by_label("W1[0,3]", exact=True).fill("0.7")
    page.wait_for_selector(READY)
    assert "predicted by the gradient" in lab.locator("#lab-said").inner_text()
    assert "agrees with" in lab.locator("#lab-chosen").inner_text()
    assert lab.locator("#lab-loss").inner_text() != start
    element = lab.get_by_label("show an element of W1", exact=True)
    element.fill("79,63")
    element.press("Enter")
    page.wait_for_selector(READY)
    weight = float(lab.get_by_label("W1[79,63]", exact=True).input_value())
    page.click("#lab-step")
    page.wait_for_selector(READY)
    moved = float(lab.get_by_label("W1[79,63]", exact=True).input_value())
    assert abs(abs(moved - weight) - 1e-3) < 2e-4  # Adam's first step is the learning rate
    page.click("#lab-reset")
    page.wait_for_selector(READY)
    assert lab.locator("#lab-loss").inner_text() == start
    assert heard == []
    page.close()


@pytest.mark.slow
def test_axe_finds_nothing(browser: Any, server: LabServer) -> None:
    page = browser.new_page()
    page.goto(server.address)
    page.click("#tab-lab")
    page.wait_for_selector(READY)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for width, scheme in ((1400, "light"), (800, "dark"), (390, "light"), (390, "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    page.close()


def test_a_server_that_has_ended_is_said(browser: Any, large: chainrule.Recording) -> None:
    lab = large.lab()
    page = browser.new_page()
    with LabServer(lab.page, lab.answer) as server:
        thread = threading.Thread(target=server.serve_until_idle, args=(60.0,))
        thread.start()
        page.goto(server.address)
        page.click("#tab-lab")
        page.wait_for_selector(READY)
        server.last = -1e9
        thread.join(10)
    page.locator("#lab").get_by_label("W1[0,3]", exact=True).fill("0.7")
    page.wait_for_selector(READY)
    assert "start `chainrule lab` again" in page.locator("#lab-said").inner_text()
    assert page.locator("#lab-loss").inner_text() == "loss ?"
    page.close()


HOST_PAGE = """
<!DOCTYPE html><html lang="en"><title>a notebook</title><body><div id="one"></div><div id="two"></div>
<script type="module">
  const source = await window.esm();
  const { default: widget } = await import("data:text/javascript," + encodeURIComponent(source));
  const heard = [];
  const page = await window.html();
  const model = {
    get: () => page,
    send: (message) => {
      if (window.restarted) throw new Error("Cannot send");
      window.asked(message).then((answer) => heard.forEach((each) => each(answer)));
    },
    on: (name, act) => heard.push(act),
    off: () => {},
  };
  for (const el of document.querySelectorAll("div")) widget.render({ model, el });
</script></body></html>
"""


def test_the_widget_of_a_notebook(browser: Any, large: chainrule.Recording) -> None:
    pytest.importorskip("anywidget", reason="the widget needs anywidget: pip install 'chainrule[lab]'")
    lab = large.lab()
    widget, sent = lab.widget, []
    widget.send = sent.append
    assert "application/vnd.jupyter.widget-view+json" in lab._repr_mimebundle_()[0]

    def asked(message: Any) -> Any:
        widget._asked(widget, message, [])
        return sent.pop()

    heard: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.expose_function("asked", asked)
    page.expose_function("esm", lambda: str(widget._esm))
    page.expose_function("html", lambda: widget.page)
    page.set_content(HOST_PAGE)
    frame, other = (page.frame_locator(f"#{each} iframe") for each in ("one", "two"))
    for each in (frame, other):
        each.locator("#tab-lab").click()
        each.locator(READY).wait_for()
    start = other.locator("#lab-loss").inner_text()
    frame.locator("#lab").get_by_label("W1[0,3]", exact=True).fill("0.7")
    frame.locator("#lab-said", has_text="predicted by the gradient").wait_for()
    assert "agrees with" in frame.locator("#lab-chosen").inner_text()
    assert other.locator("#lab-loss").inner_text() == start  # the answer to the one's question is not the other's
    page.evaluate("window.restarted = true")
    frame.locator("#lab").get_by_label("W1[0,3]", exact=True).fill("0.8")
    frame.locator("#lab-said", has_text="run its cell again").wait_for()
    assert frame.locator("#lab-loss").inner_text().startswith("loss ?")
    assert heard == []
    page.close()
