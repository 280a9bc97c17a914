"""Worksheets from outside: what `chainrule exercise` writes, and what `chainrule grade` says of what is handed in."""

import csv
import json
import re
import runpy
import shutil
import subprocess

import nbformat
import pytest
import torch
from click.testing import CliRunner

import chainrule
from chainrule.cli import commands

SIZES = "2-2-1"


def run(*arguments):
    return CliRunner().invoke(commands, [str(each) for each in arguments], prog_name="chainrule")


@pytest.fixture(scope="module")
def homework(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worksheets") / "homework"
    result = run("exercise", "--network", SIZES, "--seed", "7", "--variants", "2", "-o", folder)
    assert result.exit_code == 0, result.output
    return folder


def key(homework, label="01"):
    known = json.loads((homework / "solutions" / "key.json").read_text())
    return {each["name"]: each for each in known["variants"][label]}


def nested(values, shape):
    return torch.tensor(values, dtype=torch.float64).reshape(shape).tolist()


def right(homework, label="01"):
    """The right answers, as a student writes them."""
    asked = key(homework, label).values()
    rounded = {each["name"]: [round(value, each["decimals"]) for value in each["values"]] for each in asked}
    return {each["name"]: str(nested(rounded[each["name"]], each["shape"])) for each in asked}


def code_of(homework, label="01"):
    notebook = nbformat.read(homework / f"variant-{label}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def hand_in(homework, folder, student, answers, suffix=".md", label="01"):
    """A sheet with its blanks filled in, as a student saves it."""
    path = folder / student / f"variant-{label}{suffix}"
    path.parent.mkdir(parents=True)
    if suffix == ".md":
        text = (homework / path.name).read_text()
        path.write_text(re.sub(r"^(\w+) = [\[_].*", lambda m: f"{m[1]} = {answers.get(m[1], '___')}", text, flags=re.M))
        return
    notebook = json.loads((homework / path.name).read_text())
    for cell in notebook["cells"]:
        blank = re.fullmatch(r"(\w+) = .*", "".join(cell["source"]))
        if blank and cell["cell_type"] == "code" and blank[1] in answers:
            cell["source"] = [f"{blank[1]} = {answers[blank[1]]}"]
    path.write_text(json.dumps(notebook))


def graded(folder, homework):
    result = run("grade", folder, "--solutions", homework / "solutions", "--json")
    report, _ = json.JSONDecoder().raw_decode(result.stdout)
    return {each["student"]: each for each in report["graded"]}, report["unread"]


def marks(student):
    return {each["name"]: each for each in student["answers"]}


# -- the sheets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["01", "02"])
def test_the_key_is_what_pytorch_computes(homework, label):
    step = runpy.run_path(str(homework / "solutions" / f"variant-{label}.py"))
    before = {name: p.detach().clone() for name, p in step["model"].named_parameters()}
    cost = step["train_step"]()
    known = key(homework, label)
    assert known["J"]["values"] == [cost.item()]
    for name, parameter in step["model"].named_parameters():
        short = f"{'W' if 'weight' in name else 'b'}{name[6]}"
        assert known[f"dJ_d{short}"]["values"] == parameter.grad.flatten().tolist()
        assert known[f"new_{short}"]["values"] == parameter.detach().flatten().tolist()
        assert not torch.equal(parameter, before[name])


def test_the_numbers_are_easy_and_the_variants_differ(homework):
    for each in key(homework).values():
        assert each["exact"]
        assert all(len(f"{abs(round(v, 3)):g}".replace(".", "")) <= 3 for v in each["values"])
    assert right(homework, "01") != right(homework, "02")


def test_the_same_seed_gives_the_same_numbers(homework, tmp_path):
    run("exercise", "--network", SIZES, "--seed", "7", "--variants", "1", "-o", tmp_path / "again")
    assert right(tmp_path / "again") == right(homework)


@pytest.mark.parametrize(("options", "dead", "kinks"), [(["--dead-unit"], 1, 0), (["--kink"], 0, 1), ([], 0, 0)])
def test_a_dead_unit_or_a_kink_is_there_if_asked_for(tmp_path, options, dead, kinks):
    result = run("exercise", "--network", "2-3-1", "--seed", "1", "--variants", "1", *options, "-o", tmp_path / "o")
    assert result.exit_code == 0, result.output
    columns = torch.tensor(key(tmp_path / "o")["Z1"]["values"]).reshape(2, 3).T
    assert sum(bool((unit <= 0).all()) for unit in columns) == dead
    assert int((columns == 0).sum()) == kinks


def test_a_sheet_does_not_give_the_answers_away(homework):
    for suffix in (".md", ".tex", ".ipynb"):
        text = (homework / f"variant-01{suffix}").read_text()
        solved = (homework / "solutions" / f"variant-01{suffix}").read_text()
        for name, answer in right(homework).items():
            assert name in text or suffix == ".tex"
            assert f"{name} = {answer}" not in text
        assert len(solved) > 2 * len(text)


def test_a_notebook_checks_itself(homework, capsys):
    nbformat.validate(nbformat.read(homework / "variant-01.ipynb", as_version=4))
    names = {}
    exec(code_of(homework)[0], names)  # `check` needs neither torch nor chainrule
    for name, answer in right(homework).items():
        value = json.loads(answer)
        assert names["check"](name, value)
        assert names["check"](name, torch.tensor(value))
        assert not names["check"](name, torch.tensor(value) + 0.001)
    assert not names["check"]("Z1", [[..., ...], [..., ...]])
    assert not names["check"]("Z1", "[[1, 2], [3, 4]]")
    assert not names["check"]("Z1", torch.tensor(json.loads(right(homework)["Z1"])).flatten())  # not the shape
    assert "Z1: not answered yet\nZ1: these are not numbers\nZ1: not right yet" in capsys.readouterr().out


def test_nbgrader_finds_its_cells(homework):
    notebook = nbformat.read(homework / "variant-01.ipynb", as_version=4)
    cells = [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert sum(cell.get("points", 0) for cell in cells) == sum(len(each["values"]) for each in key(homework).values())
    assert all(cell.locked and not cell.solution for cell in cells)
    assert len({cell.grade_id for cell in cells}) == len(cells) == len(key(homework)) + 1


def test_a_script_has_one_sheet(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nw = torch.nn.Parameter(torch.tensor([0.3, -0.7]))\nx = torch.tensor([1.23456789, 2.0])\n"
        "optimizer = torch.optim.SGD([w], lr=0.1)\nfor step in range(3):\n    optimizer.zero_grad()\n"
        "    p = torch.sigmoid(w)\n    J = (p * p * x).sum()\n    J.backward()\n    optimizer.step()\n"
    )
    assert run("exercise", "--network", script, "-o", tmp_path / "o").exit_code == 0
    given = (tmp_path / "o" / "variant-01.md").read_text()
    assert "0.3 & -0.7" in given
    assert "1.23456788 & 2 " in given  # enough digits for those that are asked for
    found = key(tmp_path / "o")
    assert found["p"]["decimals"] == 4
    assert found["p"]["values"] == torch.sigmoid(torch.tensor([0.3, -0.7])).tolist()
    hand_in(tmp_path / "o", tmp_path / "in", "ada", right(tmp_path / "o"))
    students, _ = graded(tmp_path / "in", tmp_path / "o")
    assert students["ada"]["points"] == students["ada"]["of"]


def test_what_students_write_for_numbers(homework, tmp_path):
    numbers = right(homework)
    forms = {
        "text": lambda it: it.replace("-", "\N{EN DASH}"),
        "typed": lambda it: f"torch.tensor({it}, dtype=torch.float32)",
        "commented": lambda it: f"{it}  # (rounded",
        "quoted": lambda it: re.sub(r"(-?[\d.e]+)", r"'\1'", it),
    }
    for student, form in forms.items():
        hand_in(homework, tmp_path, student, {name: form(it) for name, it in numbers.items()})
    students, _ = graded(tmp_path, homework)
    assert {name: each["points"] for name, each in students.items()} == dict.fromkeys(forms, students["text"]["of"])


def test_an_item_that_cannot_be_read_leaves_the_others(homework, tmp_path):
    (tmp_path / "class.csv").write_text("student,variant,quantity,answer\nada,9,J,1\neve,1,J,1\n")
    (tmp_path / "class.json").write_text('[{"student": "kai"}, {"student": "lea", "variant": 1, "answers": {"J": 1}}]')
    (tmp_path / "lea").mkdir()
    shutil.copy(homework / "variant-01.md", tmp_path / "lea" / "again.md")
    students, unread = graded(tmp_path, homework)
    assert set(students) == {"eve", "lea"}
    said = " ".join(map(str, unread))
    assert "variant '9'" in said
    assert "an item, number 1," in said


def test_a_saved_step_has_one_sheet_with_all_that_it_began_with(tmp_path):
    torch.manual_seed(0)
    layer, x = torch.nn.LSTM(2, 1), torch.randn(3, 1, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for step in range(2):
        with chainrule.record() as recording:
            optimizer.zero_grad()
            layer(x)[0].square().sum().backward()
            optimizer.step()
        recording.save(tmp_path / f"{step}.safetensors")
    assert run("exercise", "--network", tmp_path / "1.safetensors", "-o", tmp_path / "o").exit_code == 0
    assert not any(name.startswith("zeros") for name in key(tmp_path / "o"))  # made of nothing, and given
    given = (tmp_path / "o" / "variant-01.md").read_text()
    assert "It is its step 2, and it kept from the one before" in given
    assert r"\text{exp avg sq of }" in given
    hand_in(tmp_path / "o", tmp_path / "in", "ada", right(tmp_path / "o"))
    students, _ = graded(tmp_path / "in", tmp_path / "o")
    assert students["ada"]["points"] == students["ada"]["of"]


def test_a_wrong_gradient_is_no_answer(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(
        "import torch\n\n\nclass Square(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n"
        "        ctx.save_for_backward(x)\n        return x * x\n\n    @staticmethod\n    def backward(ctx, g):\n"
        "        return g * ctx.saved_tensors[0]\n\n\nw = torch.nn.Parameter(torch.tensor([0.5, 2.0]))\n"
        "optimizer = torch.optim.SGD([w], lr=0.1)\noptimizer.zero_grad()\nSquare.apply(w).sum().backward()\n"
        "optimizer.step()\n"
    )
    result = run("exercise", "--network", script, "-o", tmp_path / "o")
    assert result.exit_code == 2
    assert "is no answer to a question" in result.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--network", "2-9-1"], "1 to 6 units"),
        (["--network", "no.py"], "neither a network nor a file"),
        (["--network", "2-x"], "whole numbers with hyphens between them, as in 2-3-2-1"),
        (["--network", __file__, "--variants", "3"], "one variant"),
        (["--network", "2-1", "--dead-unit", "--kink"], "with a dead unit and a kink was found"),
    ],
)
def test_what_is_not_to_be_had(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    result = run("exercise", *options, "-o", "out")
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "out").exists()


def test_worksheets_are_not_overwritten(homework):
    result = run("exercise", "--network", SIZES, "-o", homework)
    assert result.exit_code == 2
    assert "holds worksheets already" in result.output


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX here")
@pytest.mark.slow
def test_tex_compiles(homework, tmp_path):
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", homework / "variant-01.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


# -- grading ----------------------------------------------------------------------------------------------------------


def test_all_forms_of_right_answers_have_all_points(homework, tmp_path):
    answers = right(homework)
    hand_in(homework, tmp_path, "md", answers)
    hand_in(homework, tmp_path, "ipynb", answers, ".ipynb")
    with (tmp_path / "class.csv").open("w") as file:
        rows = [("csv", "1", name, answer) for name, answer in answers.items()]
        csv.writer(file).writerows([("student", "variant", "quantity", "answer"), *rows])
    listed = {name: json.loads(answer) for name, answer in answers.items()}
    (tmp_path / "class.json").write_text(json.dumps([{"student": "json", "variant": "01", "answers": listed}]))
    students, unread = graded(tmp_path, homework)
    assert not unread
    assert set(students) == {"md", "ipynb", "csv", "json"}
    assert all(each["points"] == each["of"] for each in students.values())
    assert all(mark["verdict"] == "right" for each in students.values() for mark in each["answers"])


def test_a_mistake_costs_its_own_points_and_has_its_name(homework, tmp_path):
    answers, known = right(homework), key(homework)
    halved = nested([v / 2 for v in known["dJ_dZ2"]["values"]], known["dJ_dZ2"]["shape"])
    hand_in(homework, tmp_path, "ada", {**answers, "dJ_dZ2": str(halved)})
    students, _ = graded(tmp_path, homework)
    mark = marks(students["ada"])["dJ_dZ2"]
    assert (mark["points"], mark["verdict"], mark["mistake"]) == (0, "wrong", "factor 2")
    assert students["ada"]["points"] == students["ada"]["of"] - 2


def test_decimal_commas_are_called_so(homework, tmp_path):
    rows, columns = key(homework)["dJ_dZ2"]["shape"]
    commas = "[" + ", ".join("[" + ", ".join(["0,5"] * columns) + "]" for _ in range(rows)) + "]"
    hand_in(homework, tmp_path, "ada", {**right(homework), "dJ_dZ2": commas, "J": "1,5"})
    students, _ = graded(tmp_path, homework)
    for name in ("dJ_dZ2", "J"):
        mark = marks(students["ada"])[name]
        assert (mark["points"], mark["verdict"], mark["mistake"]) == (0, "wrong", "decimal comma")
        assert "with a point" in mark["sentence"]


def test_what_follows_from_an_own_mistake_is_right(homework, tmp_path):
    """Plain tensor code works the step out with the bias left out in Z1, and goes on from there."""
    step = runpy.run_path(str(homework / "solutions" / "variant-01.py"))
    w = {name: p.detach().double() for name, p in step["model"].named_parameters()}
    x, y = step["X"].double(), step["Y"].double()
    a = {"Z1": x @ w["linear1.weight"].T}
    a["A1"] = a["Z1"].relu()
    a["Z2"] = a["A1"] @ w["linear2.weight"].T + w["linear2.bias"]
    a["J"] = ((a["Z2"] - y) ** 2).mean()
    a["dJ_dZ2"] = 2 * (a["Z2"] - y) / y.numel()
    a["dJ_db2"], a["dJ_dW2"] = a["dJ_dZ2"].sum(0), a["dJ_dZ2"].T @ a["A1"]
    a["dJ_dA1"] = a["dJ_dZ2"] @ w["linear2.weight"]
    a["dJ_dZ1"] = a["dJ_dA1"] * (a["Z1"] > 0)
    a["dJ_db1"], a["dJ_dW1"] = a["dJ_dZ1"].sum(0), a["dJ_dZ1"].T @ x
    for layer in (1, 2):
        for name, part in (("W", "weight"), ("b", "bias")):
            a[f"new_{name}{layer}"] = w[f"linear{layer}.{part}"] - 0.1 * a[f"dJ_d{name}{layer}"]
    assert set(a) == set(key(homework))
    hand_in(homework, tmp_path, "ada", {name: str(value.tolist()) for name, value in a.items()})
    found = marks(graded(tmp_path, homework)[0]["ada"])
    wrong = torch.tensor(key(homework)["Z1"]["values"]) != a["Z1"].flatten()
    assert found["Z1"]["verdict"] == "wrong"
    assert found["Z1"]["points"] == found["Z1"]["of"] - int(wrong.sum())
    assert "follows" in {mark["verdict"] for mark in found.values()}
    assert all(mark["points"] == mark["of"] for name, mark in found.items() if name != "Z1")


def test_no_code_of_a_student_runs(homework, tmp_path):
    bomb = tmp_path / "bomb"
    touch = f"__import__('pathlib').Path({str(bomb)!r}).touch()"
    answers = {**right(homework), "Z1": touch, "A1": f"[[{touch}, 1], [1, 1]]", "Z2": f"torch.tensor({touch})"}
    hand_in(homework, tmp_path / "in", "eve", answers, ".ipynb")
    path = tmp_path / "in" / "eve" / "variant-01.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"].append({"cell_type": "code", "metadata": {}, "outputs": [], "source": touch})
    path.write_text(json.dumps(notebook))
    students, unread = graded(tmp_path / "in", homework)
    found = marks(students["eve"])
    assert not bomb.exists()
    assert not unread
    assert all(found[name]["verdict"] == "unreadable" for name in ("Z1", "A1", "Z2"))
    assert "is code, and only numbers are graded" in found["Z1"]["sentence"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.ipynb", "{", "is no notebook"),
        ("a.ipynb", "[1, 2]", "has not the form"),
        ("a.ipynb", '{"cells": []}', "does not say"),
        ("a.md", "Z1 = 4", "does not say `Worksheet ..., variant ...`"),
        ("a.md", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.md", "Worksheet 00000000, variant 01", "is of worksheet 00000000"),
        ("a.csv", "name,points\nada,3\n", "has no columns"),
        ("a.json", "{}", "an item, number 1"),
        ("a.json", '{"student": "ada", "variant": 9, "answers": {}}', "is of variant '9', and there are 01, 02"),
    ],
)
def test_a_bad_file_has_its_sentence(homework, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("grade", tmp_path, "--solutions", homework / "solutions")
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


@pytest.mark.parametrize("answer", ["[" * 9000 + "]" * 9000, "1/0", "9e999", "[[1, 2], [3]]", "[[1 2]]", "nan", "'a'"])
def test_a_bad_answer_is_said_to_be_none(homework, tmp_path, answer):
    hand_in(homework, tmp_path, "ada", {**right(homework), "Z1": answer})
    students, _ = graded(tmp_path, homework)
    assert marks(students["ada"])["Z1"]["verdict"] == "unreadable"
    assert students["ada"]["points"] == students["ada"]["of"] - 4


def test_the_table_of_a_class(homework, tmp_path):
    answers = right(homework)
    hand_in(homework, tmp_path, "ada", answers)
    hand_in(homework, tmp_path, "ben", {"Z1": answers["Z1"], "J": "___"}, ".ipynb")
    hand_in(homework, tmp_path, "=cmd", {**answers, "J": "-7777"})
    shown = run("grade", tmp_path, "--solutions", homework / "solutions").output
    assert re.search(r"ada +01 +(\d+) +\1\b", shown)
    assert re.search(r"ben +01 +4 +", shown)
    table = run("grade", tmp_path, "--solutions", homework / "solutions", "--csv").stdout
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["student"] for row in rows] == ["'=cmd", "ada", "ben"]
    assert [row["J"] for row in rows] == ["0", "1", "0"]


def test_a_sheet_without_a_folder_belongs_to_the_name_on_it(homework, tmp_path):
    text = (homework / "variant-02.md").read_text().replace("Name:", "Name: Ada L.")
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "ben.md").write_text(text.replace("Ada L.", ""))
    assert set(graded(tmp_path, homework)[0]) == {"Ada L.", "ben"}


def test_a_blank_sheet_of_the_class_is_nobody(homework):
    result = run("grade", homework)
    assert result.exit_code == 2
    assert "nothing to grade" in result.output
