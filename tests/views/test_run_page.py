"""The page of a run as text: what is in it, what cannot be in it, and that its types are those of its data."""

import math
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from chainrule import runs
from chainrule.errors import StorageError
from tests.runs import made_up, sick
from tests.views import hostile
from tests.views.pages import data_of
from tests.views.test_page import Elements, script_of

FOLDER = Path(runs.__file__).parent / "monitor" / "run_page"
COLUMNS = 600  # of a page: what a screen can show


def render(run):
    with TemporaryDirectory() as folder:
        run.save(Path(folder) / "run.html")
        return (Path(folder) / "run.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.db"
    sick.write(path)
    return path


@pytest.fixture(scope="module")
def shown(path):
    with runs.open(path) as run:
        return data_of(render(run))


def test_everything_of_the_run_is_in_it(shown):
    assert shown["watched"] == 300
    assert shown["columns"][0] == [10, 10]
    assert shown["columns"][-1] == [3000, 3000]
    assert len(shown["rates"]) == 2
    assert [each["title"] for each in shown["maps"]] == ["gradient norm", "update / weight", "spread of outputs"]
    assert [each["id"] for each in shown["findings"]] == ["non-finite", "vanishing-gradient", "loss-spike"]
    assert shown["recordings"] == [{"step": 1500, "reason": "loss-spike: the loss", "link": ""}]
    assert sum(shown["skipped"]) == 1


def test_cells_are_the_numbers_of_the_run(path, shown):
    with runs.open(path) as run:
        series = run.series("parameter gradient", sick.LAYERS[2])
    cells = shown["maps"][0]["cells"][2]
    assert cells == [float(f"{each.norm:.3g}") for each in series.statistics]
    broken = shown["maps"][0]["cells"][5]
    assert broken[280:] == ["inf"] * 20
    assert "inf" not in broken[:280]


def test_a_long_run_is_cut_into_columns_and_its_spikes_stay(tmp_path):
    sick.write(tmp_path / "run.db", steps=2000)
    with runs.open(tmp_path / "run.db") as run:
        shown = data_of(render(run))
        spike = max(each.norm for each in run.series("parameter gradient", sick.LAYERS[0]).statistics)
    assert len(shown["columns"]) == COLUMNS == len(shown["loss"]["mean"]) == len(shown["maps"][0]["cells"][0])
    first, last = zip(*shown["columns"], strict=True)
    assert [step + 10 for step in last[:-1]] == list(first[1:])
    assert max(cell for cell in shown["maps"][0]["cells"][0]) == float(f"{spike:.3g}")
    assert max(shown["loss"]["high"]) > 8


def test_of_very_many_tensors_some_are_shown_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("chainrule.monitor.run_page.ROWS", 5)
    sick.write(tmp_path / "run.db", steps=5)
    with runs.open(tmp_path / "run.db") as run:
        shown = data_of(render(run))["maps"][0]
    assert [each["name"] for each in shown["rows"]] == list(sick.LAYERS[::3])
    assert shown["left_out"] == 8


@pytest.mark.parametrize("name", hostile.NAMES, ids=range(len(hostile.NAMES)))
def test_no_name_becomes_an_element(tmp_path, name):
    name = name.replace("\ud800", "")  # no database keeps half a surrogate pair
    sick.write(tmp_path / "run.db", steps=3, name=name)
    with runs.open(tmp_path / "run.db") as run:
        html = render(run)
    found = Elements(html).found
    assert [tag for tag, _ in found].count("script") == 2
    assert not any(key.startswith("on") for _, attributes in found for key in attributes)
    assert data_of(html)["maps"][0]["rows"][0]["name"] == name


def test_a_run_without_steps(tmp_path):
    runs.Writer(tmp_path / "run.db").close()
    with runs.open(tmp_path / "run.db") as run:
        shown = data_of(render(run))
    assert (shown["columns"], shown["maps"], shown["watched"]) == ([], [], 0)


def test_the_types_name_the_fields_of_the_data(shown):
    text = (FOLDER / "types.d.ts").read_text(encoding="utf-8")
    kinds = {"RunPage": shown, "Curve": shown["loss"], "HeatMap": shown["maps"][0], "Line": shown["maps"][0]["rows"][0]}
    kinds |= {"Finding": shown["findings"][0], "Recorded": shown["recordings"][0]}
    for name, item in kinds.items():
        body = re.search(rf"interface {name} \{{(.*?)\}}", text, re.DOTALL)[1]
        body = re.sub(r"/\*\*.*?\*/", "", body, flags=re.DOTALL)
        assert re.findall(r"(\w+):", body) == list(item), name


def test_the_modules_become_one_script_that_imports_nothing(path):
    with runs.open(path) as run:
        script = script_of(render(run))
    assert "import " not in re.sub(r"/\*\*.*?\*/|//.*", "", script, flags=re.DOTALL).replace("@import", "")
    defined = re.findall(r"^(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert len(defined) == len(set(defined)), "two modules have a name in common"
    for file in FOLDER.glob("*.js"):
        for name in re.findall(r"^export (?:function|class|const|let) (\w+)", file.read_text(), re.MULTILINE):
            assert name in defined, file


def test_pages_of_recorded_steps_stand_beside_their_files_and_are_linked(tmp_path):
    import torch
    from torch import nn

    import chainrule

    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch(model, optimizer, to=tmp_path / "run.db", full_every=2):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
    (tmp_path / "pages").mkdir()
    with runs.open(tmp_path / "run.db") as run:
        run.save(tmp_path / "pages" / "run.html")
        run.save(tmp_path / "run.md")
        with pytest.raises(StorageError, match=r"no view writes \.xyz"):
            run.save(tmp_path / "run.xyz")
    first, recorded = data_of((tmp_path / "pages" / "run.html").read_text())["recordings"]
    assert first == {"step": 1, "reason": "the first watched step", "link": "../run.steps/1.html"}
    assert recorded == {"step": 2, "reason": "every 2 steps", "link": "../run.steps/2.html"}
    assert "Content-Security-Policy" in (tmp_path / "run.steps" / "2.html").read_text()
    assert "| `weight` |" in (tmp_path / "run.md").read_text()


def test_entries(tmp_path):
    writer = runs.Writer(tmp_path / "run.db")
    for step, norm in enumerate((1234.5678, math.nan, math.inf, -math.inf, 1e-12), 1):
        norms = made_up.statistics(1.0)
        writer.add(made_up.facts(step), [runs.Figure("parameter gradient", "x", 0, "", "", replace(norms, norm=norm))])
    writer.close()
    with runs.open(tmp_path / "run.db") as run:
        html = render(run)
    assert data_of(html)["maps"][0]["cells"] == [[1230.0, None, "inf", "-inf", 1e-12]]
    assert "1e-12]" in html
