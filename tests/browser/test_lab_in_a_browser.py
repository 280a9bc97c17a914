"""The lab of a page: its program in a real browser, held against PyTorch run with the changed numbers."""

from __future__ import annotations

import base64
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule import report
from chainrule.document import Document, Program
from chainrule.examples import worked_example
from chainrule.graph.graph import Value
from chainrule.lab.tracing import ELEMENTWISE, REDUCTIONS
from chainrule.views.json import encoded, from_json, to_json
from tests.browser.lab_steps import STEPS, Trained
from tests.browser.other_lab_steps import OTHERS

PROGRAM = Path(chainrule.__file__).parent / "views" / "page" / "program.js"
FAST = {"mlp", "cnn"}
ALL = STEPS | OTHERS
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL]

COMPARED = """
async ([module, program, changes]) => {
  const { Machine, toNumber } = await import(module);
  const machine = new Machine(program);
  const recorded = new Map(program.values.map(([row, , numbers]) => [row, numbers]));
  const begin = () => {
    for (const [row, slot] of program.inputs) machine.slots[slot].set(recorded.get(row).map(toNumber));
    for (const [, slot, value] of program.settings ?? []) machine.slots[slot][0] = value;
    if (program.step) machine.slots[program.step[0]][0] = program.step[1];
  };
  const after = (program.updates ?? []).map((each) => [each.row, each.first]);
  const wrong = [];
  let compared = 0;
  for (const change of changes) {
    begin();
    const slot = program.inputs.find(([row]) => row === change.row)?.[1];
    if (slot !== undefined) machine.slots[slot][change.place] = change.number;
    for (const [kind, places] of [["values", program.values], ["gradients", program.gradients], ["after", after]]) {
      const { numbers, spreads } = machine.measured(places.map(([, operand]) => operand));
      places.forEach(([row, operand], k) => (change[kind][row] ?? []).forEach((expected, i) => {
        const type = program.types[typeof operand === "number" ? operand : operand[0]];
        compared += 1;
        if (!machine.holds() || !Machine.same(numbers[k][i], toNumber(expected), spreads[k][i], type))
          wrong.push([change.row, kind, row, i, numbers[k][i], expected]);
      }));
    }
  }
  return { wrong, compared };
}
"""


def document_of(trained: Trained) -> Document:
    return trained.record().document(running=True)


def numbers(data: Tensor) -> list[Any]:
    return [each if math.isfinite(each) else str(each) for each in data.detach().reshape(-1).tolist()]


def rows_of(recording: chainrule.Recording) -> dict[int, Value]:
    """The value of each row."""
    context = report.Context(recording.graph, recording.derivation, recording.notation)
    return {row: recording.graph.values[value] for value, row in report.value_table.row_numbers(context).items()}


def facts_of(trained: Trained) -> dict[str, Any]:
    """Each value, gradient and updated parameter, by its row."""
    recording = trained.record()
    graph = recording.graph
    rows = rows_of(recording)
    ends = {each.value: each.after for each in graph.parameters.values()}
    return {
        "values": {row: numbers(value.data) for row, value in rows.items() if value.data is not None},
        "gradients": {row: numbers(value.grad) for row, value in rows.items() if value.grad is not None},
        "after": {row: numbers(ends[v.index]) for row, v in rows.items() if ends.get(v.index) is not None},
    }


def changed(trained: Trained, inputs: list[int], generator: random.Random) -> dict[str, Any]:
    """One number of one input or parameter changed, and what PyTorch makes of the step then."""
    recording = trained.record()
    tensors = {name: each.data for name, each in trained.model.named_parameters()}
    parameters = {each.value: tensors[name] for name, each in recording.graph.parameters.items()}
    rows = rows_of(recording)
    while True:
        row = generator.choice(inputs)
        value = rows[row]
        same = [each for each in trained.given if value.data is not None and _is(each, value.data)]
        target = parameters.get(value.index, same[0] if same else None)
        if target is not None:
            break
    place, flat = generator.randrange(target.numel()), target.view(-1)
    kept = flat[place].clone()
    if target.is_floating_point():
        flat[place] = generator.random()
    else:
        flat[place] = generator.randrange(int(target.max()) + 1)
    facts = facts_of(trained)
    number = numbers(flat[place : place + 1])[0]
    flat[place] = kept
    return {"row": row, "place": place, "number": number, **facts}


def _is(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


@pytest.fixture(scope="module")
def empty_page(browser: Any) -> Any:
    """A page without a document, in which programs run."""
    page = browser.new_page()
    yield page
    page.close()


def compared(page: Any, program: Program, changes: list[dict[str, Any]]) -> dict[str, Any]:
    module = "data:text/javascript;base64," + base64.b64encode(PROGRAM.read_bytes()).decode()
    return page.evaluate(COMPARED, [module, json.loads(json.dumps(encoded(program))), changes])


@pytest.mark.parametrize("name", EACH)
def test_what_follows_a_change_is_what_pytorch_gives(name: str, empty_page: Any) -> None:
    torch.manual_seed(0)
    trained = ALL[name]()
    document = document_of(trained)
    assert document.program is not None, document.without_program
    assert not document.program.without
    as_recorded = {"row": -1, "place": 0, "number": 0, **facts_of(trained)}
    generator = random.Random(1)
    inputs = [row for row, _ in document.program.inputs]
    changes = [as_recorded, *(changed(trained, inputs, generator) for _ in range(2 if name in FAST else 5))]
    found = compared(empty_page, document.program, changes)
    assert found["wrong"] == []
    assert found["compared"] > 100


def test_a_wrong_program_is_noticed(empty_page: Any) -> None:
    torch.manual_seed(0)
    trained = STEPS["mlp"]()
    program = document_of(trained).program
    assert program is not None
    place, line = next((n, each) for n, each in enumerate(program.code) if each[0] == "mul")
    code = (*program.code[:place], ("add", *line[1:]), *program.code[place + 1 :])
    as_recorded = {"row": -1, "place": 0, "number": 0, **facts_of(trained)}
    assert compared(empty_page, replace(program, code=code), [as_recorded])["wrong"]


def test_the_page_knows_every_primitive() -> None:
    text = PROGRAM.read_text(encoding="utf-8")
    for name in (ELEMENTWISE - {"bitwise_not"}) | REDUCTIONS:
        assert f"\n  {name}:" in text or f"\n  {name},\n" in text, name


# -- the page ---------------------------------------------------------------------------------------------------------


def lab(page: Any) -> Any:
    page.click("#tab-lab")
    return page.locator("#lab")


@pytest.fixture
def runs() -> Document:
    model, loss, optimizer = worked_example.build()
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording.document(pointing=True, running=True)


def test_a_number_is_changed_and_everything_follows(open_page: Any, runs: Document) -> None:
    page = open_page(runs)
    shown = lab(page)
    field = shown.get_by_label("W3[0,1]", exact=True)
    start = shown.locator("#lab-loss").inner_text()
    assert start == "loss 0.1952"
    field.fill("0.5")
    assert "predicted by the gradient" in shown.locator("#lab-said").inner_text()
    chosen = shown.locator("#lab-chosen").inner_text()
    assert " = 3.9343 agrees with 3.9343, measured by moving it" in chosen
    assert "= dJ/dZ3[0,0] (0.4918) · A2[0,1] (8) = 3.9348" in chosen
    assert shown.locator("#lab-loss").inner_text() != start
    page.click("#lab-reset")
    assert shown.locator("#lab-loss").inner_text() == start
    field.focus()
    field.press("ArrowUp")
    assert field.input_value() != "0"
    page.click("#lab-back")
    assert shown.locator("#lab-loss").inner_text() == start
    field.fill("what")
    assert field.get_attribute("aria-invalid") is not None


EXPLAINED = """
async () => {
  const found = [];
  for (const field of document.querySelectorAll("#lab-body input")) {
    field.focus();
    await new Promise((done) => setTimeout(done, 0));
    const terms = [...document.querySelectorAll("#lab-chosen li")].map((each) => each.textContent);
    const whole = document.querySelector("#lab-chosen p");
    if (whole) found.push([field.getAttribute("aria-label"), whole.textContent, terms]);
  }
  return found;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "attention", "gru", "in_place", "reader"])
def test_each_gradient_agrees_with_a_measured_difference_and_is_its_sum(name: str, open_page: Any) -> None:
    torch.manual_seed(0)
    page = open_page(document_of(ALL[name]()))
    lab(page)
    found = page.evaluate(EXPLAINED)
    assert len(found) > 5
    for element, whole, terms in found:
        assert " agrees with " in whole, (element, whole)
        if terms and not any("more" in each for each in terms):
            numbers = [float(each.rpartition(" = ")[2]) for each in terms]
            total = float(whole.partition(" = ")[2].split()[0])
            assert sum(numbers) == pytest.approx(total, abs=1e-4 * (1 + len(numbers))), element


def test_a_number_is_dragged(open_page: Any, runs: Document) -> None:
    page = open_page(runs)
    field = lab(page).get_by_label("W3[0,1]", exact=True)
    field.scroll_into_view_if_needed()
    before, box = float(field.input_value()), field.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 5, steps=4)
    page.mouse.up()
    assert float(field.input_value()) > before
    assert page.locator("#lab-loss .was").inner_text() == "0.1952"
    page.click("#lab-back")
    assert float(field.input_value()) == before


def test_a_setting_is_changed(open_page: Any, runs: Document) -> None:
    page = open_page(runs)
    shown = lab(page)
    after = shown.locator("#lab-body > tr > td:nth-child(4) .now").first
    start = after.inner_text()
    shown.get_by_label("lr", exact=True).fill("1")
    assert after.inner_text() != start
    page.click("#lab-back")
    assert after.inner_text() == start


def test_steps_are_those_of_the_optimizer(open_page: Any, runs: Document) -> None:
    model, loss, optimizer = worked_example.build()
    page = open_page(runs)
    shown = lab(page)
    for _ in range(3):
        worked_example.train_step(model, loss, optimizer)
        page.click("#lab-step")
    expected = model.linear1.weight.detach()
    for row, column in ((0, 0), (1, 1)):
        text = shown.get_by_label(f"W1[{row},{column}]", exact=True).input_value()
        assert float(text) == pytest.approx(float(expected[row, column]), abs=1e-4)
    assert "3 steps" in shown.locator("#lab-curve").inner_text()
    for _ in range(3):
        page.click("#lab-back")
    assert shown.locator("#lab-loss").inner_text() == "loss 0.1952"


class Centred(nn.Module):
    """Takes off a running mean of its input, which it updates after it is used, and normalises twice by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.norm(x - self.mean).sin())
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return out


def test_steps_carry_the_buffers_that_the_forward_pass_writes(open_page: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2)), Centred(), nn.Linear(2, 1))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(4, 2)

    def step() -> None:
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()

    with chainrule.record() as recording:
        step()
    page = open_page(recording.document(running=True))
    shown = lab(page)
    page.click("#lab-step")
    for _ in range(2):
        step()
        page.click("#lab-step")
        page.wait_for_selector("#lab[aria-busy=false]")
    carried = (
        ("1.norm.running_mean@1[1]", model[1].norm.running_mean[1]),
        ("1.mean[1]", model[1].mean[1]),
        ("0.weight_u[0]", model[0].weight_u[0]),
    )
    for name, expected in carried:
        text = shown.get_by_label(name, exact=True).input_value()
        assert float(text) == pytest.approx(float(expected), abs=1e-4), name


def test_no_step_is_taken_where_a_buffer_would_stay_behind() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("queue", torch.ones(3, 2))

    def loss() -> Tensor:
        out = model(torch.randn(4, 2))
        product = (out @ model.queue.clone().T).sum()
        model.queue[0] = out.detach()[0]
        return product

    program, _ = reason(model, loss)
    assert program is not None
    assert program.without == "the forward pass writes to queue, which the page does not show"


def test_rows_out_of_sight_are_written_too(open_page: Any, runs: Document) -> None:
    page = open_page(runs)
    page.set_viewport_size({"width": 1400, "height": 320})
    shown = lab(page)
    last = shown.locator("#lab-body > tr").last
    assert not last.evaluate("(row) => row.getBoundingClientRect().top < innerHeight")
    shown.get_by_label("W1[0,1]", exact=True).fill("3")
    page.wait_for_selector("#lab[aria-busy=false]")
    loss = shown.locator("#lab-loss b").inner_text()
    assert loss != "0.1952"
    assert last.locator(".now").first.text_content() == loss


def test_a_page_whose_program_is_wrong_has_no_lab(open_page: Any, runs: Document) -> None:
    assert runs.program is not None
    broken = tuple(
        (name, slot, (*operands[:-1], "0.7"), *sizes) if name == "add" else (name, slot, operands, *sizes)
        for name, slot, operands, *sizes in runs.program.code
    )
    page = open_page(replace(runs, program=replace(runs.program, code=broken)))
    assert page.locator("#tab-lab").is_hidden()
    page.click("#tab-overview")
    assert "This page has no lab: its program gives" in page.locator("#overview").inner_text()


def test_axe_finds_nothing(open_page: Any, runs: Document) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for options, widths in (({}, (1400, 390)), ({"color_scheme": "dark"}, (800,))):
        page = open_page(runs, **options)
        lab(page).get_by_label("W1[0,1]", exact=True).fill("0.9")
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            found = axe.Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


# -- steps without a lab ----------------------------------------------------------------------------------------------


def reason(model: nn.Module, loss: Any, make: Any = None) -> tuple[Program | None, str]:
    optimizer = make(model.parameters()) if make else None
    model.zero_grad()
    with chainrule.record() as recording:
        loss().backward()
        if optimizer:
            optimizer.step()
    document = recording.document(running=True)
    return document.program, document.without_program


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class NoFormula(torch.optim.SGD):
    """An optimizer of the user's own, as far as anybody knows."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_why_a_step_has_no_lab() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    large = nn.Linear(100, 40)
    assert reason(large, lambda: large(torch.randn(2, 100)).sum())[1].startswith("the step has 4,")
    assert "Twice" in reason(model, lambda: Twice.apply(model(x)).sum())[1]
    assert (
        "read out of a tensor at test_lab_in_a_browser.py:"
        in reason(model, lambda: model(x).sum() * float(x.mean()))[1]
    )
    assert "complex numbers" in reason(model, lambda: torch.fft.rfft(model(x)).abs().sum())[1]
    fit = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        fit.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    with chainrule.record() as recording:
        fit.step(closure)
    assert recording.document(running=True).without_program.startswith("3 backward passes began at a loss")
    program, _ = reason(model, lambda: model(x).sum(), NoFormula)
    assert program is not None
    assert "no formula covers the update of NoFormula" in program.without

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record() as recording:
        model(x).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    program = recording.document(running=True).program
    assert program is not None
    assert "another gradient of weight" in program.without


def test_a_program_holds_while_the_labels_that_count_do(empty_page: Any) -> None:
    """`cross_entropy` divides by the number of labels that are not ignored, which is read as a number."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3), torch.randn(3, 2), torch.tensor([0, 2, 1])
    program, _ = reason(model, lambda: F.cross_entropy(model(x), y))
    assert program is not None
    assert program.guards
    rows = {row: values for row, _, values in program.values}
    labels = next(row for row, _ in program.inputs if rows[row] == (0, 2, 1))
    nothing = {"values": {}, "gradients": {}, "after": {}}
    other = {"row": labels, "place": 0, "number": 1, **nothing}
    ignored = {"row": labels, "place": 0, "number": -100, **nothing}
    some_row = {str(program.loss): [0.0]}
    assert compared(empty_page, program, [other])["wrong"] == []
    assert compared(empty_page, program, [{**ignored, "values": some_row}])["wrong"]


def test_a_document_keeps_its_program(runs: Document) -> None:
    assert from_json(to_json(runs)).program == runs.program
