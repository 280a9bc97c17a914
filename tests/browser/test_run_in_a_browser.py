"""The page of a run in a real browser, with keys and mouse, as a reader uses it."""

import re

import pytest

from chainrule import runs
from chainrule.graph.history import StepFacts
from chainrule.graph.statistics import Statistics
from tests.runs import sick
from tests.views import hostile
from tests.views.test_run_page import render

pytestmark = pytest.mark.slow  # the browser alone takes seconds to start
AXE = "the accessibility test needs axe-core: pip install axe-playwright-python"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.db"
    sick.write(path)
    with runs.open(path) as run:
        (path.parent / "run.steps").mkdir()
        (path.parent / "run.steps" / "1500.html").touch()  # the page of the step is there
        run.save(path.parent / "run.html")
    return (path.parent / "run.html").read_text(encoding="utf-8")


@pytest.fixture
def open_run(browser, tmp_path, html):
    """Open a run's page; in the end hold that it asked for nothing and complained of nothing."""
    heard = []

    def open_run(text=html, width=1400, **options):
        file = tmp_path / "run.html"
        file.write_text(text, encoding="utf-8")
        page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: asked.url.startswith("file:") or heard.append(f"request {asked.url}"))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=15000)
        return page

    yield open_run
    assert heard == []


def test_pointing_at_the_heat_map_tells_the_step_and_the_tensor(open_run):
    page = open_run()
    plot = page.locator(".heat-over-time .plot").first
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] * 0.5, "y": box["height"] * 3.5 / len(sick.LAYERS)})
    assert page.inner_text("#readout h2") == "step 1,510"
    assert page.inner_text("#readout code") == sick.LAYERS[3]
    told = page.inner_text("#readout")
    assert "gradient norm" in told
    assert "update / weight" in told


def test_arrow_keys_walk_in_time_and_depth(open_run):
    page = open_run()
    plot = page.locator(".heat-over-time .plot").first
    plot.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.inner_text("#readout h2") == "step 20"
    assert page.inner_text("#readout code") == sick.LAYERS[1]


def test_dragging_looks_closer_and_all_goes_back(open_run):
    page = open_run()
    assert page.inner_text("#span") == "steps 10 to 3,000"
    box = page.locator(".plot").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20, steps=3)
    page.mouse.up()
    first, last = map(int, re.findall(r"\d+", page.inner_text("#span").replace(",", "")))
    assert (first, last) == (760, 1510)
    page.click("#in")
    page.click("#later")
    page.click("#all")
    assert page.inner_text("#span") == "steps 10 to 3,000"


def test_a_finding_leads_to_its_words_and_its_step(open_run):
    page = open_run()
    assert page.locator(".found").count() == 3
    page.locator(".found.error").click()
    assert page.url.endswith("#finding-1")  # the most severe one first
    assert "5 numbers are not finite." in page.inner_text("#finding-1")
    page.click("#finding-3 button")
    assert page.inner_text("#readout h2") == "step 1,500"
    assert page.inner_text("#readout code") == sick.LAYERS[3]


def test_a_recorded_step_is_linked(open_run):
    page = open_run()
    assert page.get_attribute("a.recorded-step", "href") == "run.steps/1500.html"
    page.click("#finding-3 button")
    assert page.get_attribute("#readout a", "href") == "run.steps/1500.html"


def test_cells_that_are_not_finite_are_marked(open_run):
    page = open_run()
    pixel = page.evaluate(
        """() => {
            const canvas = document.querySelector(".heat-over-time canvas");
            return [...canvas.getContext("2d").getImageData(canvas.width - 1, 5, 1, 1).data];
        }"""
    )
    assert pixel == [220, 38, 38, 255]


def test_a_link_to_a_finding_and_its_button_lead_to_its_column_wherever_it_is(open_run):
    page = open_run()
    page.click("#findings button >> nth=1")  # since step 10
    for _ in range(4):
        page.click("#in")
    assert page.inner_text("#readout h2") == "step 10"
    page.click("#finding-3 button")
    assert page.inner_text("#readout h2") == "step 1,500"
    page.evaluate("location.hash = '#finding-1'")
    page.wait_for_function("document.querySelector('#readout h2').innerText === 'step 2,810'")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.inner_text("#readout h2") == "step 2,810"


def test_exact_zeros_are_hatched_and_blanks_explained(open_run, tmp_path):
    writer = runs.Writer(tmp_path / "run.db", every=1, versions={})
    for step in range(1, 21):
        norms = {"dead.weight": 0.0, "live.weight": 1.0, **({"late.weight": 2.0} if step > 10 else {})}
        figures = [
            runs.Figure(
                "parameter gradient", name, place, "Linear", "", Statistics(4, norm, 0, norm, -norm, norm, 0, 0)
            )
            for place, (name, norm) in enumerate(norms.items())
        ]
        writer.add(StepFacts(step, 1e9 + step, 1.0, (0.1,), skipped=False, scale=None), figures)
    writer.close()
    with runs.open(tmp_path / "run.db") as run:
        page = open_run(render(run))
    column = """() => {
        const canvas = document.querySelector(".heat-over-time canvas");
        return [...canvas.getContext("2d").getImageData(0, 0, 1, 3).data];
    }"""
    data = page.evaluate(column)
    zero, live, blank = data[:4], data[4:8], data[8:]
    assert zero[3] == 0  # a zero shows the ground, which is hatched
    ground = "getComputedStyle(document.querySelector('.heat-over-time .plot')).backgroundImage"
    assert "repeating-linear-gradient" in page.evaluate(ground)
    assert live[3] == blank[3] == 255
    assert live != blank == [252, 252, 251, 255]  # the paper
    assert page.inner_text(".keys").startswith("exactly 0")
    page.locator(".heat-over-time .plot").first.hover(position={"x": 2, "y": 45})
    assert "no number" in page.inner_text("#readout")


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_nothing_is_wider_than_the_page(open_run, width):
    page = open_run(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_a_scale_stays_clear_of_the_switch_beside_it(open_run):
    page = open_run(width=390)
    scale, switch = (
        [each.bounding_box() for each in page.query_selector_all(f".plain {part}")]
        for part in (".scale-y span:last-child", "label")
    )
    assert scale
    assert all(low["y"] >= box["y"] + box["height"] for low, box in zip(scale, switch, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_run, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=AXE, exc_type=ImportError).Axe()
    found = axe.run(open_run(color_scheme=scheme))
    assert found.violations_count == 0, found.generate_report()


def test_an_empty_run(open_run, tmp_path):
    runs.Writer(tmp_path / "run.db").close()
    with runs.open(tmp_path / "run.db") as run:
        page = open_run(render(run))
    assert page.inner_text("#course") == "No step has been watched yet."


def test_hostile_names_are_text(open_run, tmp_path):
    name = " ".join(hostile.NAMES).replace("\ud800", "")
    sick.write(tmp_path / "run.db", steps=30, name=name)
    with runs.open(tmp_path / "run.db") as run:
        page = open_run(render(run))
    assert page.locator("img").count() == 0
    assert page.locator("#findings b.mark").count() == 4
