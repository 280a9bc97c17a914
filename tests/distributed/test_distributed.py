"""Two and four real processes: what a rank gives is told apart from what all are given, and both are proved."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule import runs
from chainrule.errors import RecordingError
from chainrule.graph.history import joined
from chainrule.graph.statistics import Statistics
from tests.distributed import workers

pytestmark = pytest.mark.trains
PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
FIGURES = ("norm", "mean", "std", "low", "high")
COUNTS = ("elements", "zeros", "not_finite")
LINEAR = ["module.0.weight", "module.0.bias", "module.2.weight", "module.2.bias"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    return workers.start(2, workers.record_steps, folder)


def of_one(scenario, two):
    return [each[scenario] for each in two]


# -- one step ---------------------------------------------------------------------------------------------------------


def test_recording_changes_nothing_on_any_rank(two):
    for rank in two:
        (bare, _), (recorded, hooks) = rank["bare"], rank["recorded"]
        assert all(torch.equal(a, b) for a, b in zip(bare, recorded, strict=True))
        assert hooks == 0


@pytest.mark.parametrize("scenario", ["step", "bucket"])
def test_local_gradients_and_their_mean_are_told_apart_and_proved(two, scenario):
    found = of_one(scenario, two)
    for rank, each in enumerate(found):
        assert {verdict for _, verdict in each["rows"]} == {"agrees"}
        assert each["passed"]
        assert list(each["combined"]) == sorted(LINEAR)
        assert {c.verdict for c in each["combined"].values()} == {"agrees"}
        assert {c.how for c in each["combined"].values()} == {"elements"}
        assert each["findings"] == []
        assert each["events"] == []
        assert each["verdicts"] == ["agrees"] * 4
        assert (
            each["sections"].index("backward")
            < each["sections"].index("all-reduce")
            < each["sections"].index("gradients")
        )
        assert each["batches"] == [12, 12]
        for name, (local, mean) in each["own"].items():
            assert torch.equal(local, each["combined"][name].gathered[rank])
            assert torch.equal(mean, each["grads"][name])
    for name in LINEAR:
        (one, mean), (other, _) = (each["own"][name] for each in found)
        assert not torch.equal(one, other)
        torch.testing.assert_close((one + other) / 2, mean)
        assert torch.equal(mean, found[1]["own"][name][1])


def test_the_local_gradient_is_that_of_a_process_on_its_own(two):
    model = workers.built(small=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    workers.step_of(model, optimizer, *workers.data(0))
    for rank, each in enumerate(of_one("step", two)):
        model.zero_grad()
        x, y = workers.data(1, rank, 2)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each["own"][f"module.{name}"][0], parameter.grad)


def test_statistics_of_local_gradients_where_numbers_are_not_kept(two):
    for each in of_one("statistics", two):
        assert set(each["local"]) == {
            "module.hidden.weight",
            "module.hidden.bias",
            "module.out.weight",
            "module.out.bias",
        }
        large = each["local"]["module.hidden.weight"]
        assert large.norm == pytest.approx(each["whole"]["module.hidden.weight"].norm().item(), rel=1e-5)
        assert large.norm != pytest.approx(each["combined"]["module.hidden.weight"].tolerance or 0)
        assert each["combined"]["module.hidden.weight"].verdict == "not checked"
        assert "sum is the mean" in each["combined"]["module.hidden.weight"].reason
        assert each["combined"]["module.out.bias"].verdict == "agrees"
        assert each["findings"] == []


def test_large_gradients_are_proved_along_directions_and_chosen_ones_by_element(two):
    for few, chosen in of_one("directions", two):
        assert set(few.values()) == {("directions", "agrees")}
        assert chosen["module.0.bias"] == chosen["module.0.weight"] == ("elements", "agrees")
        assert chosen["module.2.bias"] == ("directions", "agrees")


def test_micro_batches_are_added_up_before_they_go_over_the_ranks(two):
    for each in of_one("accumulated", two):
        assert each["verdicts"] == {"agrees"}
        assert each["batch"] == 24
        assert each["findings"] == []
        for local, expected in zip(each["local"], each["expected"], strict=True):
            torch.testing.assert_close(local, expected)


def test_a_mean_that_is_none_is_found(two):
    for each in of_one("wrong mean", two):
        assert not each["passed"]
        assert each["found"].verdict == "disagrees"
    assert "`.grad`[2] is" in two[1]["wrong mean"]["found"].reason
    assert two[0]["wrong mean"]["found"].reason == "`.grad` is not the same on all ranks: 1 differ"


def test_a_communication_hook_is_no_wrong_mean(two):
    for each in of_one("hook", two):
        assert each["verdicts"] <= {"agrees", "not checked"}
        assert "fp16_compress_hook takes the place of the mean" in each["reasons"]


def test_a_gathered_recording_is_saved_and_read(two):
    assert of_one("saved", two) == [True, True]


def test_what_is_wrong_on_one_rank_is_an_error_on_all(two):
    first, second = of_one("missing", two)
    assert first == second
    assert first.startswith("gather(parameters=...): no parameter matches 'nowhere.*'. There are module.0.weight,")


def test_without_a_process_group():
    with chainrule.record() as recording:
        torch.ones(2, requires_grad=True).sum().backward()
    with pytest.raises(RecordingError, match=r"torch\.distributed is not initialised"):
        chainrule.distributed.gather(recording)


# -- ranks that differ ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("unequal", ("rank-unequal-batch", "warning", "rank 1", (1,))),
        ("nan", ("rank-not-finite", "error", "rank 1", (1,))),
        ("diverged", ("rank-diverged", "warning", "module.2.weight", (1,))),
        ("inner", ("rank-not-reduced", "warning", "0.weight", (1,))),
    ],
)
def test_a_rank_that_differs_is_named(two, scenario, told):
    for each in of_one(scenario, two):
        assert each["told"] == [told]
        assert each["passed"]


def test_words(two):
    assert "rank 0: 12, rank 1: 13." in two[0]["unequal"]["text"]
    text = "The gradients that rank 1 of 2 sent to the others are not finite; those of the other rank are."
    assert text in two[1]["nan"]["text"]


# -- sharded ----------------------------------------------------------------------------------------------------------


def test_recording_changes_nothing_of_a_sharded_training(two):
    for rank in two:
        (bare, _), (recorded, hooks) = rank["sharded bare"], rank["sharded recorded"]
        assert all(torch.equal(a, b) for a, b in zip(bare, recorded, strict=True))
        assert hooks == 0


def test_a_sharded_parameter_is_told_as_a_part_and_its_gradient_as_a_whole(two):
    found, plain = of_one("sharded", two), of_one("step", two)
    for rank, each in enumerate(found):
        assert {verdict for _, verdict in each["rows"]} == {"agrees"}
        assert each["verdicts"] == ["agrees"] * 4
        assert {c.verdict for c in each["combined"].values()} == {"agrees"}
        assert each["findings"] == []
        assert "reduce-scatter" in each["sections"]
        for name, (local, mean) in each["own"].items():
            whole, of_all = plain[rank]["own"][f"module.{name}"]
            torch.testing.assert_close(local, whole)  # what the plain copies of DistributedDataParallel would give
            torch.testing.assert_close(mean, of_all.chunk(2)[rank] if len(of_all.chunk(2)) > rank else of_all[:0])
            assert torch.equal(mean, each["grads"][name])


def test_statistics_of_a_sharded_step(two):
    for each in of_one("sharded statistics", two):
        assert each["shapes"]["hidden.weight"] == (1024, 4)
        assert each["leaves"]["hidden.weight"] == (2048, 4)
        assert each["local"]["hidden.weight"].elements == 2048 * 4
        assert each["before"]["hidden.weight"] == (1024, 4)
        assert each["findings"] == []
    for plain, each in zip(of_one("statistics", two), of_one("sharded statistics", two), strict=True):
        norm = plain["local"]["module.hidden.weight"].norm
        assert each["local"]["hidden.weight"].norm == pytest.approx(norm, rel=1e-5)


def test_a_watch_joins_the_parts_of_sharded_parameters(two, folder):
    with runs.open(folder / "sharded.db") as run:
        ours = workers.figures(run)
        assert list(run.recordings()) == [1, 4]
    same_figures(ours, alone(folder, "unsharded"))


# -- a run ------------------------------------------------------------------------------------------------------------


def alone(folder, name="alone-run"):
    """The same training in one process, on the joined batches."""
    workers.watched(0, 1, folder, name, wrap=None, full_every=4)
    with runs.open(folder / f"{name}.db") as run:
        return workers.figures(run)


def same_figures(ours, theirs):
    """All figures of two runs are equal to rounding: of each tensor relative to the size of its elements."""
    assert [(f.step, f.passes, f.rates) for f in ours["steps"]] == [
        (f.step, f.passes, f.rates) for f in theirs["steps"]
    ]
    for a, b in zip(ours["steps"], theirs["steps"], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.clipped == pytest.approx(b.clipped, rel=1e-5)
    assert not any(kind == "input" for kind, _ in ours["tensors"])  # which are parts of one, nobody knows
    assert set(ours["tensors"]) == {key for key in theirs["tensors"] if key[0] != "input"}
    for key, several in ours["tensors"].items():
        for one, other in zip(several, theirs["tensors"][key], strict=True):
            scale = other.norm / math.sqrt(max(other.elements, 1))
            for name in FIGURES:
                allowed = 2e-4 if key[0] == "update" else 1e-5  # an update of Adam's is a quotient of rounded numbers
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=allowed, abs=allowed * scale), key
            assert [getattr(one, name) for name in COUNTS] == [getattr(other, name) for name in COUNTS], key


def test_a_watch_joins_the_ranks(two, folder):
    with runs.open(folder / "run.db") as run:
        ours = workers.figures(run)
        assert list(run.recordings()) == [1, 4]
    one = alone(folder)
    same_figures(ours, one)
    assert set(ours["findings"]) == set(one["findings"]) == {"gradient-changed"}  # the clipping
    assert of_one("watch", two)[0]["told"] == of_one("watch", two)[1]["told"] == []


def test_a_watch_that_fails_on_one_rank_holds_up_nobody(two, folder):
    first, second = of_one("watch failed", two)
    assert len(first["told"]) == len(second["told"]) == 1
    assert first["told"][0].startswith("chainrule: the ranks no longer watch together (rank 1 has sent nothing since")
    assert second["told"] == ["chainrule: watching ended at step 5: ZeroDivisionError: division by zero"]
    for mine, healthy in zip(first["parameters"], two[0]["watch"]["parameters"], strict=True):
        assert torch.equal(mine, healthy)  # the training is what it is
    with runs.open(folder / "failed.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]


def test_a_watch_on_rank_0_alone_says_so(two, folder):
    told = two[0]["watch alone"]["told"]
    assert len(told) == 1
    assert told[0].startswith("chainrule: rank 1 has no watch: call chainrule.watch on every rank, in the same way")
    with runs.open(folder / "alone.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]


def test_ranks_at_different_steps_are_not_joined(two, folder):
    said = "chainrule: the ranks are at different steps (rank 0 at 1, rank 1 at 2): from step 1 on all statistics are "
    for rank, each in enumerate(of_one("watch at different steps", two)):
        assert each["told"] == ([] if rank else [f"{said}those of rank 0 alone."])
        for mine, healthy in zip(each["parameters"], two[rank]["watch"]["parameters"], strict=True):
            assert torch.equal(mine, healthy)
    with runs.open(folder / "different.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]
        assert {each.elements for each in run.series("value", "out").statistics} == {3 * workers.SAMPLES // 2}


def test_a_watch_names_the_rank_with_a_nan(two, folder):
    with runs.open(folder / "nan.db") as run:
        found = {each.id: each for each in run.findings()}
    assert found["rank-not-finite"].where == "rank 1"
    assert found["rank-not-finite"].since == 2


def of_ranks_in(path):
    with runs.open(path) as run:
        return {
            (each.id, each.where, each.severity, each.since) for each in run.findings() if each.id.startswith("rank")
        }


def test_ranks_whose_gradients_are_reduced_by_hand_stay_together(two, folder):
    assert of_ranks_in(folder / "by-hand.db") == set()


def test_a_watch_names_the_parameter_in_which_the_ranks_parted(two, folder):
    assert ("ranks-parted", "2.bias", "warning", 4) in of_ranks_in(folder / "parted.db")


def test_ranks_that_part_after_the_first_step_may_be_meant_to(two, folder):
    found = {each for each in of_ranks_in(folder / "apart.db") if each[0] == "ranks-parted"}
    assert {(severity, since) for _, _, severity, since in found} == {("note", 2)}


@pytest.mark.slow
def test_one_rank_alone_looks_at_an_unfinished_step(tmp_path):
    """The other one closes its watch only when rank 0 has looked at its step, and so takes part in nothing."""
    workers.start(2, workers.leave_one_by_one, tmp_path)
    for name in ("alone", "replicated", "sharded"):
        with runs.open(tmp_path / f"{name}.db") as run:
            (found,) = [each for each in run.findings() if each.id.startswith("non-finite")]
            assert [facts.step for facts in run.steps()] == [1, 2, 3]
        assert found.since == 4
        assert found.evidence[-1] == "Step 4 ended before its update."


@pytest.mark.slow
def test_four_processes_give_the_figures_of_one(tmp_path):
    found = workers.start(4, workers.watch_many, tmp_path)
    with runs.open(tmp_path / "run.db") as run:
        ours = workers.figures(run)
    same_figures(ours, alone(tmp_path))
    for _, step in found:
        assert step["passed"]
        assert {each.verdict for each in step["combined"].values()} == {"agrees"}
        assert len(next(iter(step["combined"].values())).gathered) == 4


def torchrun(folder, *arguments):
    """Run something as torchrun does, with the package that is tested here."""
    package = str(Path(chainrule.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_example_of_the_docs_under_torchrun(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    script, command, printed, *_ = re.findall(r"```(?:python|sh|text)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    assert command == "torchrun --nproc-per-node 2 train.py\n"
    assert torchrun(tmp_path, "train.py") == printed


# A whole script, watched from outside: the watch is there before the process group is.
WATCHED = """
import torch, torch.distributed as dist
from torch import nn
dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(4):
    optimizer.zero_grad()
    model(torch.full((4, 2), float(dist.get_rank()))).square().mean().backward()
    optimizer.step()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_script_is_watched_under_torchrun(tmp_path):
    (tmp_path / "train.py").write_text(WATCHED, encoding="utf-8")
    torchrun(tmp_path, "-m", "chainrule", "watch", "train.py", "--every", "2", "--to", "run.db", "--plain")
    with runs.open(tmp_path / "run.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]
        (value,) = run.tensors("value")
        assert run.series("value", value.name).statistics[0].elements == 2 * 4 * 3


# -- figures ----------------------------------------------------------------------------------------------------------


def test_joined_figures_are_those_of_one_tensor():
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) + n for n in (3, 1, 50)]
    parts[2][7] = float("inf")
    parts.append(torch.full((4,), float("nan")))
    ours = joined(Statistics.of(each.double()) for each in parts)
    whole = Statistics.of(torch.cat(parts).double())
    assert [getattr(ours, name) for name in COUNTS] == [getattr(whole, name) for name in COUNTS] == [58, 0, 5]
    for name in FIGURES:
        assert getattr(ours, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert joined([Statistics.of(parts[3])]) == Statistics.of(parts[3])
