"""The file of a run: what goes in comes out, whoever else has it open, and whatever is wrong with it is said."""

import gc
import math
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest

from chainrule import runs
from chainrule.errors import MissingError, StorageError
from chainrule.graph.statistics import Statistics
from tests.runs.made_up import NAMES, facts, figures, write

CHUNK, HISTOGRAMS = 64, 10  # steps in a full chunk, and from one histogram to the next: docs/runs.md


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


def test_what_goes_in_comes_out(path):
    writer = runs.Writer(path, every=7, versions={"torch": "2"})
    whole = facts(3, loss=0.25, scale=8.0, clipped=(2.5, 1.0), passes=4)
    writer.add(whole, figures(3))
    writer.add(facts(4, loss=None, skipped=True, rates=()))
    writer.add(facts(5, loss=math.inf), figures(5))
    writer.add(facts(6, loss=math.nan))
    writer.close()
    with runs.open(path) as run:
        assert run.steps()[:2] == [whole, facts(4, loss=None, skipped=True, rates=())]
        assert run.losses()[:2] == [(3, 0.25), (5, math.inf)]
        assert math.isnan(run.losses()[2][1])
        assert (run.every, run.versions, run.status, run.runs) == (7, {"torch": "2"}, "ended", (1,))
        assert [tensor.name for tensor in run.tensors("update")] == list(NAMES)
        series = run.series("parameter", "fc1.bias")
        assert (series.kind, series.name, series.layer, series.type) == ("parameter", "fc1.bias", 1, "Linear")
        assert series.steps == [3, 5]
        assert [each.norm for each in series.statistics] == [31, 51]
        exact = series.statistics[0]
        assert (exact.elements, exact.zeros, exact.not_finite, exact.magnitudes) == (12, 3, 0, ())
        assert exact.mean == pytest.approx(3.1)


def test_a_run_that_nobody_closes_is_closed_when_it_goes(path):
    """From Python 3.13 on a connection that is not closed is a warning, and an error here."""
    write(path, range(1, 3))
    assert len(runs.open(path).steps()) == 2
    gc.collect()


def test_counts_are_exact_and_sizes_float32(path):
    large = Statistics(2**31 + 1, 1e60, 1e-60, 1.1, -math.inf, math.inf, 16_777_217, 123_456_789)
    writer = runs.Writer(path)
    writer.add(facts(1), [runs.Figure("value", "x", 0, "", "", large)])
    writer.close()
    with runs.open(path) as run:
        (found,) = run.series("value", "x").statistics
    assert (found.elements, found.zeros, found.not_finite) == (2**31 + 1, 16_777_217, 123_456_789)
    assert (found.norm, found.mean, found.std) == (math.inf, 0, float(np.float32(1.1)))


def test_many_steps_make_full_chunks(path):
    write(path, range(1, 3 * CHUNK + 5))
    with runs.open(path) as run, closing(sqlite3.connect(path)) as inside, inside:
        assert inside.execute("SELECT count(*) FROM chunk").fetchone() == (3 * 4,)
        steps, tensors, norms = run.table("parameter gradient", "norm")
        assert steps.tolist() == list(range(1, 3 * CHUNK + 5))
        assert [tensor.name for tensor in tensors] == list(NAMES)
        assert np.array_equal(norms, steps + np.arange(3)[:, None])


def test_a_slow_run_is_written_as_it_goes_and_has_full_chunks_too(path):
    writer = runs.Writer(path)
    for step in range(1, CHUNK + 3):
        writer.add(facts(step), figures(step))
        assert writer.flush()
        if step in (1, 5):
            with runs.open(path) as run:  # while it is written
                assert run.series("update", "fc1.weight").steps == list(range(1, step + 1))
    writer.close()
    with closing(sqlite3.connect(path)) as inside, inside:
        assert inside.execute("SELECT count(*) FROM chunk").fetchone() == (3 * 2,)


def test_tensors_that_come_and_go(path):
    writer = runs.Writer(path)
    for step in range(1, 11):
        writer.add(facts(step), figures(step)[: 9 if step % 2 else 8])
    writer.close()
    with runs.open(path) as run:
        assert run.series("update", "fc2.weight").steps == [1, 3, 5, 7, 9]
        assert run.series("update", "fc1.bias").steps == list(range(1, 11))
        _, _, norms = run.table("update", "norm")
        assert np.isnan(norms[2]).tolist() == [False, True] * 5


def test_histograms_are_kept_now_and_then(path):
    writer = runs.Writer(path)
    counts = tuple(range(16))
    for step in range(1, HISTOGRAMS + 2):
        writer.add(facts(step), [*figures(step, counts)[:2], *figures(step)[2:3]])
    writer.close()
    with runs.open(path) as run:
        kept = [each.magnitudes for each in run.series("parameter", "fc1.bias").statistics]
        assert kept == [counts, *[()] * (HISTOGRAMS - 1), counts]
        assert {each.magnitudes for each in run.series("parameter", "fc2.weight").statistics} == {()}


def test_history_in_part(path):
    write(path, range(1, 101))
    with runs.open(path) as run:
        history = run.history(("update",), first=10, last=90, at_most=5)
        assert [each.step for each in history.steps] == [10, 30, 50, 70, 90]
        assert {kind for kind, _ in history.series} == {"update"}
        assert history.series["update", "fc1.weight"].steps == [10, 30, 50, 70, 90]


def test_update_ratios_and_what_is_not_finite(path):
    writer = runs.Writer(path)
    broken = Statistics(12, 1.0, 0, 0, 0, 0, 0, 2)
    writer.add(facts(1), [*figures(1)[:6], runs.Figure("update", "fc1.weight", 0, "Linear", "", broken)])
    writer.add(facts(2), figures(2))
    writer.close()
    with runs.open(path) as run:
        steps, tensors, ratios = run.ratios()
        assert (steps.tolist(), [each.name for each in tensors]) == ([1, 2], list(NAMES))
        assert ratios[0].tolist() == [math.inf, np.float32(1 / 20)]
        assert run.table("update", "norm")[2][0].tolist() == [1, 1]


def test_findings_take_the_place_of_those_before(path):
    writer = runs.Writer(path)
    writer.find(runs.Found("unit-off", "warning", "1", "Unit 2 is off.", ("of 8",), "Try.", "a.py:3", 3, 4, (2,), 8))
    writer.find(runs.Found("loss-spike", "error", "", "It jumped.", since=9))
    last = runs.Found(
        "unit-off", "warning", "1", "Units 2 and 3 are off.", ("of 8",), "Try.", "a.py:3", 3, 9, (2, 3), 8
    )
    writer.find(last)
    writer.close()
    with runs.open(path) as run:
        assert run.findings() == (last, runs.Found("loss-spike", "error", "", "It jumped.", since=9))
    assert str(last) == "warning from step 3 to 9: Units 2 and 3 are off (a.py:3).\n  of 8\n  Try."


def test_a_second_run_in_the_file_is_another_run(path):
    write(path, range(1, 4))
    write(path, range(1, 6))
    with runs.open(path) as run, runs.open(path, run=1) as first:
        assert (run.id, run.runs, len(run.steps()), len(first.steps())) == (2, (1, 2), 5, 3)
        assert repr(run) == f"<chainrule.runs.Run 2 of {path}: 5 watched steps, ended>"
    with pytest.raises(MissingError) as raised:
        runs.open(path, run=3)
    assert str(raised.value) == f"{path} has no run number 3; the numbers in it: 1, 2."


def test_two_runs_at_the_same_time(path):
    one, two = runs.Writer(path), runs.Writer(path)
    for step in range(1, 50):
        one.add(facts(step), figures(step))
        two.add(facts(2 * step), figures(2 * step))
    one.close(), two.close()
    assert (one.run, two.run) == (1, 2)
    with runs.open(path, 1) as first, runs.open(path, 2) as second:
        assert first.series("update", "fc1.weight").steps == list(range(1, 50))
        assert second.series("update", "fc1.weight").steps == list(range(2, 100, 2))


def test_a_resumed_run_goes_on_with_its_own_steps(path):
    write(path, range(1, 101))
    write(path, range(71, 76), start=70)
    with runs.open(path) as run:
        assert run.runs == (1,)
        assert [each.step for each in run.steps()] == list(range(1, 76))
        series = run.series("parameter", "fc1.weight")
        assert series.steps == list(range(1, 76))
        assert [each.norm for each in series.statistics] == [10 * step for step in series.steps]


def test_a_disk_that_is_full_and_then_is_not(path, monkeypatch):
    writer = runs.Writer(path)
    writer.add(facts(1), figures(1))
    writer.flush()
    put = writer._put_figures

    def full(*items):
        put(*items)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(writer, "_put_figures", full)
    writer.add(facts(2), figures(2))
    writer.flush()
    assert writer.problem == f"{path} cannot be written now: database or disk is full"
    monkeypatch.undo()
    writer.add(facts(3), figures(3))
    writer.close()
    assert writer.problem is None
    with runs.open(path) as run:
        assert [each.step for each in run.steps()] == [1, 2, 3]
        assert run.series("update", "fc1.bias").steps == [1, 2, 3]


def test_what_waits_too_long_is_given_up(path, monkeypatch):
    monkeypatch.setattr("chainrule.monitor.runs.writer.WAITING", 3)
    writer = runs.Writer(path)

    def fail(*items):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(writer, "_put_step", fail)
    for step in range(1, 6):
        writer.add(facts(step))
    writer.flush()
    monkeypatch.undo()
    writer.close()
    with runs.open(path) as run:
        assert (writer.dropped, [each.step for each in run.steps()]) == (2, [3, 4, 5])


def test_a_folder_that_cannot_be_written(tmp_path):
    missing = tmp_path / "none" / "run.db"
    with pytest.raises(StorageError) as raised:
        runs.Writer(missing)
    assert str(raised.value) == (
        f"{missing} cannot be written as the file of a run: unable to open database file. Give a path in a writable "
        "folder, on a disk with free space."
    )


def test_files_that_are_none_of_a_run(path, tmp_path):
    with pytest.raises(StorageError, match="there is no such file"):
        runs.open(path)
    path.write_bytes(b"not a database, but long enough to be looked at as if it were one" * 40)
    for act in (runs.open, runs.Writer):
        with pytest.raises(StorageError) as raised:
            act(path)
        assert str(raised.value) == (
            f"{path} is not the file of a run: file is not a database. Give a file that chainrule.watch(..., to=...) "
            "wrote, or another path."
        )
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    for act in (runs.open, runs.Writer):
        with pytest.raises(StorageError, match="it is a database of another program"):
            act(other)
    with closing(sqlite3.connect(other)) as connection, connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]


def test_a_newer_version(path):
    write(path, [1])
    with closing(sqlite3.connect(path)) as connection, connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + 1}")
    for act in (runs.open, runs.Writer):
        with pytest.raises(StorageError) as raised:
            act(path)
        assert str(raised.value) == (
            f"{path} is the file of a run in format version {version + 1}; this chainrule reads version "
            f"{version}. Use a newer chainrule."
        )


@pytest.mark.parametrize("damage", [b"x", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_chunk(path, damage):
    write(path, range(1, 9))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE chunk SET norm = ?", (damage,))
    with runs.open(path) as run, pytest.raises(StorageError, match="cannot be read to its end"):
        run.table("update", "norm")


def test_a_file_that_is_cut_short(path):
    write(path, range(1, 400))
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.2):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(StorageError), runs.open(path) as run:
            run.history()
            run.findings()


def test_a_name_that_is_not_there(path):
    write(path, [1])
    with runs.open(path) as run:
        with pytest.raises(MissingError) as raised:
            run.series("update", "fc1.wieght")
        assert str(raised.value) == (
            f"{path} has no update named 'fc1.wieght'. Near matches: 'fc1.weight', 'fc2.weight'."
        )
        with pytest.raises(MissingError, match="no series of kind 'updates'; the kinds are"):
            run.series("updates", "fc1.weight")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(path, library):
    write(path, range(1, 4))
    with runs.open(path) as run:
        steps, updates = run.frame(library=library), run.frame("update", library=library)
    assert type(steps).__module__.startswith(library)
    assert list(steps["loss"]) == [1, 1 / 2, 1 / 3]
    assert list(steps["learning_rate_1"]) == [0.01] * 3
    assert list(updates["name"]) == [name for name in NAMES for _ in range(3)]
    assert list(updates["norm"])[:3] == [0.5, 1.0, 1.5]
    assert list(updates["zeros"]) == [3] * 9


def test_parquet(path, tmp_path):
    from pyarrow import parquet

    write(path, range(1, 4))
    with runs.open(path) as run:
        run.to_parquet(tmp_path / "out")
    tables = {file.stem: parquet.read_table(file).to_pydict() for file in (tmp_path / "out").iterdir()}
    assert set(tables) == {"steps", "findings", "parameter", "parameter_gradient", "update"}
    assert tables["steps"]["step"] == [1, 2, 3]
    assert tables["update"]["norm"][:3] == [0.5, 1.0, 1.5]


def test_tensorboard(path, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(path, range(1, 4))
    with runs.open(path) as run:
        run.to_tensorboard(tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("update/norm/fc1.weight")] == [
        (1, 0.5),
        (2, 1),
        (3, 1.5),
    ]
    assert [each.wall_time for each in events.Scalars("loss")] == [1001, 1002, 1003]


@pytest.mark.parametrize(
    ("library", "ask", "what"),
    [
        ("pandas", lambda run: run.frame(library="pandas"), "a DataFrame"),
        ("pyarrow", lambda run: run.to_parquet("out"), "Parquet"),
        ("tensorboard", lambda run: run.to_tensorboard("out"), "TensorBoard event files"),
    ],
)
def test_a_library_that_is_missing_is_named(path, monkeypatch, library, ask, what):
    write(path, [1])
    monkeypatch.setitem(sys.modules, library, None)
    with runs.open(path) as run, pytest.raises(MissingError) as raised:
        ask(run)
    assert str(raised.value) == f"{what} needs {library}, which is not installed: pip install {library}"


def test_a_run_without_steps(path):
    write(path, [])
    with runs.open(path) as run:
        assert (run.steps(), run.losses(), run.tensors(), run.findings()) == ([], [], [], ())
        assert run.ratios()[2].shape == (0, 0)
        assert str(run.document().summary[0].text) == "('No step has been watched yet.',)"
        assert len(run.frame("update", "pandas")) == 0
