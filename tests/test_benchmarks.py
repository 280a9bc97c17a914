"""The benchmarks run, in sizes of the tests, and count what they say they count. No timing is asserted."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import footprint, gpu, memory, overhead, scale, steps, store, timing, verification, watching
from benchmarks.__main__ import TOPICS
from benchmarks.footprint import held_by, made_by, measurable, owned, peak, saved_by_autograd, total
from benchmarks.peers import __main__ as peers
from benchmarks.peers import one, tools
from benchmarks.steps import SUBJECTS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_collection_before_each_segment(monkeypatch):
    """With all that the other tests have imported it takes longer than the segments."""
    monkeypatch.setattr(timing, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.mark.parametrize("key", SUBJECTS)
def test_every_step_trains_its_whole_model(key):
    step = SUBJECTS[key].build(tiny=True)
    assert step().isfinite()
    assert all(parameter.grad is not None for parameter in step.model.parameters())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_with_an_optimizer_updates(kind):
    step = steps.mlp(tiny=True).updated_by(kind)
    before = [parameter.clone() for parameter in step.model.parameters()]
    step()
    assert not any(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [(steps.resnet50, 25_557_032), (SUBJECTS["gpt2-sdpa"].build, 124_439_808), (steps.mlp, 669_706)],
)
def test_the_models_have_the_size_that_their_names_claim(build, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().model.parameters()) == parameters


def test_a_comparison_is_of_medians_beside_the_bare_step_itself(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "process_time", lambda: 2 * clock[0])

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    found = timing.compare(takes(1), {"slow": takes(3), "same": takes(1)}, seconds=60)
    assert found == {"slow": timing.Comparison(1, 3, 3, 3, 1), "same": timing.Comparison(1, 1, 1, 1, 1)}


def test_overhead_has_a_target_for_every_step():
    assert overhead.TARGETS.keys() == SUBJECTS.keys()
    assert set(TOPICS) >= {"overhead", "memory", "verification", "scale", "watching", "store"}


def test_made_by_counts_each_result_and_gradient_once():
    step = steps.chain(2)
    results = 8 * 4 + 8 * 4 + 4  # x * scale, tanh, their sum
    gradients = (
        4 + 8 * 4
    )  # one number for all that were added, and what tanh sends on; what arrives at the leaf is .grad
    users = 8 * 4 + 8 * 4 + 4 + 4  # the leaf, its gradient, the scale, the target
    assert made_by(step) == results + gradients + users


def test_held_by_finds_what_a_recording_holds_and_not_the_model():
    step = steps.mlp(tiny=True)
    saved = {}
    with saved_by_autograd(saved):
        recording = overhead.recorded(step)()
    held = held_by(recording)
    assert total(held, without=owned(step)) > 0
    assert held.keys() & saved.keys()  # no copy of what autograd holds anyway
    assert not held_by([step.model, type(step), footprint])


@pytest.mark.skipif(not measurable(), reason="this system does not tell a process its peak")
def test_peak_sees_what_was_in_use_and_let_go_of():
    def passing():
        b"x" * int(50e6)

    assert peak(passing) - peak(lambda: None) > 40e6


@pytest.mark.skipif(not measurable(), reason="this system does not tell a process its peak")
def test_a_leak_shows_as_a_slope():
    leaked = []

    def leak():  # fresh pages: an allocator would hand out again what earlier tests have freed
        leaked.append(mmap.mmap(-1, 1_000_000))
        leaked[-1].write(b"x" * 1_000_000)

    slope, growth, size = memory.resident_slope(leak, count=20, warm_up=2)
    assert 0.5e6 < slope < 2e6
    assert 10e6 < growth < size


def test_verification_and_scale_take_every_stage():
    proof = verification.prove(steps.gpt2("eager", tiny=True), rounds=1)
    assert proof.agrees
    assert proof.nodes > 100
    assert set(proof.ratios) == {"graph", "derivation", "verification"}
    assert set(scale.per_node(steps.chain(20), rounds=1)) == set(scale.STAGES)


def test_a_watched_training_is_held_against_a_bare_one():
    (made,) = watching.tables({"mlp": 4}, tiny=True)
    cells = [list(column.cells) for column in made.columns]
    assert cells[:2] == [[SUBJECTS["mlp"].title] * 2, ["50", "1"]]
    assert all(float(cell) > 0 for column in cells[2:6] for cell in column)


def test_a_made_up_run_is_written_and_read():
    (made,) = store.tables(steps=20, parameters=2)
    assert made.title == "A run of 20 steps x 2 parameters x 5 series"
    assert all(float(cell) >= 0 for cell in made.columns[1].cells)


def test_a_table_takes_the_place_of_the_one_of_its_title(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{bench.BEGIN}\n\n**A run of 20 steps x 2 parameters x 5 series** (old)\n\n"
                    f"**Another** (old)\n\n{bench.END}\n", encoding="utf-8")  # fmt: skip
    monkeypatch.setattr(bench, "PAGE", page)
    bench.write([*store.tables(steps=20, parameters=2), *watching.tables({"mlp": 4}, tiny=True)])
    told = page.read_text(encoding="utf-8")
    assert told.count("**A run of 20 steps") == told.count("(old)") == told.count("**Watching, as a multiple") == 1


@pytest.mark.parametrize("tool", ["chainrule, keep all", "detect_anomaly", "module hooks"])
def test_a_tool_that_works_is_measured(tool):
    found = one.measured("mlp", tool, seconds=0, tiny=True)
    assert found["ratio"] > 0
    assert found["what"]


def test_a_tool_that_fails_says_why(monkeypatch):
    def absent(training):
        import torch.no_such_module  # noqa: F401

    def broken(training):
        raise ValueError("the first line\nand more")

    monkeypatch.setitem(tools.TOOLS, "absent", absent)
    monkeypatch.setitem(tools.TOOLS, "broken", broken)
    assert one.measured("mlp", "absent", 0, tiny=True) == {"error": "not installed: torch.no_such_module"}
    assert one.measured("mlp", "broken", 0, tiny=True) == {"error": "ValueError: the first line"}


def test_peers_stand_side_by_side_and_each_is_told_at_once(capsys):
    works = {"bare": 0.01, "ratio": 1.5, "noise": 1.0, "above": 2e6, "operations": 10, "nodes": None, "what": "values"}
    made = peers.side_by_side("MLP", [("one", works), ("other", {"error": "ValueError: no"})])
    assert capsys.readouterr().err.startswith("one | works | 1.50")
    cells = [list(column.cells) for column in made.columns]
    assert list(zip(*cells, strict=True)) == [
        ("one", "works", "1.50", "1.00", "+2.0", "10", "", "values"),
        ("other", "fails", "", "", "", "", "", "ValueError: no"),
        ("bare step, 10.00 ms", "", "1.00", "", "", "", "", ""),
    ]


def test_one_tool_runs_in_a_process_of_its_own():
    command = [sys.executable, "-m", "benchmarks.peers.one", "mlp", "module hooks", "--tiny", "--seconds", "0"]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout.splitlines()[-1])["what"] == "values (6) and gradients (6) of modules"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_gpu_table_says_so(capsys):
    gpu.main()
    assert capsys.readouterr().out.startswith("No GPU here")


def test_the_gpu_tables_with_a_stand_in_for_the_device():
    emptied = []
    device = gpu.Device("cpu", lambda: emptied.append(1), lambda step: 1e6, lambda step: 2)
    case = gpu.Case("tiny", lambda: gpu.mixed(steps.gpt2("sdpa", tiny=True)), {"all": 1.1})
    time, held = gpu.tables((case,), device, seconds=0)
    assert list(time.columns[0].cells) == ["tiny"] * len(overhead.KEEPS)
    assert list(held.columns[4].cells) == ["2"] * (1 + len(overhead.KEEPS))
    assert emptied


def test_autocast_is_on_in_the_forward_pass_alone():
    seen = []

    class Model(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    step = gpu.mixed(steps.Training(Model(2, 1), torch.ones(1, 2), torch.zeros(()), lambda out, _: out.sum()))
    step()
    assert seen == [torch.bfloat16]
    assert step.model.weight.grad.dtype == torch.float32
