"""Ask me: the page turns numbers into blanks, names mistakes, and shows no answer before it is right or revealed."""

from __future__ import annotations

from typing import Any

import pytest

import chainrule
from chainrule.document import Document
from chainrule.examples import worked_example


@pytest.fixture(scope="module")
def asks() -> Document:
    model, loss, optimizer = worked_example.build("sgd")
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording.document(pointing=True, running=True)


def opened(page: Any) -> Any:
    page.click("#tab-ask")
    return page.locator("#ask")


def answer(page: Any, name: str, number: str) -> str:
    field = page.get_by_label(name, exact=True)
    field.fill(number)
    field.press("Enter")
    return str(page.locator("#ask-said").inner_text())


def test_gradients_as_blanks(open_page: Any, asks: Document) -> None:
    page = open_page(asks)
    opened(page)
    fields = page.locator("#ask-blanks input")
    assert {each.input_value() for each in fields.all()} == {""}
    assert not page.locator("#detail").is_visible()  # it has the answers
    assert answer(page, "dJ/dA3[0,0]", "0.55") == "dJ/dA3[0,0] is right."
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "dJ/dA3[1,0]"
    assert "the sign is wrong" in answer(page, "dJ/dW2[0,1]", "0.575")
    assert "the ReLU is off there: Z2[0,0] = 0" in answer(page, "dJ/dZ2[0,0]", "0.0228")
    assert answer(page, "dJ/dW2[0,0]", "0.1234") == "dJ/dW2[0,0] is not right."
    assert "too few digits" in answer(page, "dJ/dW2[0,1]", "-0.6")
    assert "is no number" in answer(page, "dJ/dW2[0,1]", "a half")
    assert page.get_by_label("dJ/dW2[0,1]", exact=True).get_attribute("aria-invalid") == "true"
    assert page.locator("#ask-progress").inner_text() == f"1 of {fields.count()} right"


def test_hints_and_reveal(open_page: Any, asks: Document) -> None:
    page = open_page(asks)
    opened(page)
    page.get_by_label("dJ/dW2[0,1]", exact=True).focus()
    hints = []
    for _ in range(3):
        page.click("#ask-hint")
        hints.append(page.locator("#ask-said").inner_text())
    assert hints[0] == "Hint 1 of 2: dJ/dW2[0,1] = dJ/dZ2[0,0] · A1[0,1] + dJ/dZ2[1,0] · A1[1,1]"
    assert "dJ/dZ2[1,0] = -0.0639" in hints[1]
    assert hints[2] == hints[1]  # the other product is 0: this one is the answer
    page.get_by_label("dJ/dW1[0,1]", exact=True).focus()
    for _ in range(3):
        page.click("#ask-hint")
    assert page.locator("#ask-said").inner_text().startswith("Hint 3 of 3: dJ/dZ1[0,0] · X[0,1] = ")
    assert "-0.5747" not in page.locator("#ask").inner_text()
    page.get_by_label("dJ/dW2[0,1]", exact=True).focus()
    page.click("#ask-reveal")
    assert page.locator("#ask-said").inner_text() == "dJ/dW2[0,1] = -0.5747"
    assert "1 shown" in page.locator("#ask-progress").inner_text()


def test_values_and_updates(open_page: Any, asks: Document) -> None:
    page = open_page(asks)
    opened(page)
    page.select_option("#ask-kind", "value")
    assert answer(page, "A2[1,1]", "10.1") == "A2[1,1] is right."
    assert "ReLU is left out" in answer(page, "A1[0,2]", "-7.8")
    page.select_option("#ask-kind", "update")
    assert answer(page, "new W2[0,1]", "1.00575") == "new W2[0,1] is right."
    assert "the learning rate 0.01 is left out" in answer(page, "new W2[0,0]", "0.8831")
    page.click("#ask-again")
    assert page.locator("#ask-progress").inner_text().startswith("0 of ")


@pytest.mark.slow
def test_axe_finds_nothing_to_ask(open_page: Any, asks: Document) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for options in ({}, {"color_scheme": "dark"}):
        page = open_page(asks, **options)
        opened(page)
        answer(page, "dJ/dA3[0,0]", "0.55")
        answer(page, "dJ/dA3[1,0]", "0.6715")
        page.click("#ask-given summary")
        for width in (1400, 800, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
