"""A watch around real loops: what it sees is what happened, and the training is what it is without."""

import copy
import warnings
from pkgutil import resolve_name

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.errors import ChainruleWarning
from tests.watching.usual import COMPILED, X, Y, built, compiled_function, compiled_module, train, watched

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nothing_is_left")]


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_what_is_watched_is_what_happened(path):
    model, optimizer = built()
    with chainrule.watch(model, optimizer, every=3, to=path) as watch:
        losses = train(model, optimizer, 7)
    assert (watch.step_number, watch.watched) == (7, 3)
    with runs.open(path) as run:
        assert run.losses() == [(step, losses[step - 1]) for step in (1, 3, 6)]
        assert run.status == "ended"
        assert {facts.rates for facts in run.steps()} == {(1e-2,)}
        names = {name for name, _ in model.named_parameters()}
        for kind in ("parameter", "parameter gradient", "update"):
            assert {each.name for each in run.tensors(kind)} == names
        assert {each.name for each in run.tensors("moment")} == {
            f"{name}/{key}" for name in names for key in ("exp_avg", "exp_avg_sq")
        }
        assert {(each.name, each.type) for each in run.tensors("value")} == {
            ("hidden", "Linear"), ("act", "ReLU"), ("out", "Linear")
        }  # fmt: skip


def test_figures_are_those_of_the_tensors(path):
    model, optimizer = built(torch.optim.SGD, momentum=0.9)
    seen = []
    with chainrule.watch(model, optimizer, to=path):
        for _ in range(3):
            before = model.hidden.weight.detach().clone()
            train(model, optimizer, 1)
            after = model.hidden.weight.detach()
            momentum = optimizer.state[model.hidden.weight]["momentum_buffer"]
            seen.append([each.norm().item() for each in (before, model.hidden.weight.grad, after - before, momentum)])
    with runs.open(path) as run:
        for place, kind in enumerate(("parameter", "parameter gradient", "update", "moment")):
            name = "hidden.weight/momentum_buffer" if kind == "moment" else "hidden.weight"
            norms = [each.norm for each in run.series(kind, name).statistics]
            assert norms == pytest.approx([each[place] for each in seen], rel=1e-5)
        value = run.series("value", "act").statistics[0]
        assert value.elements == 128
        assert value.zeros == int((F.relu(F.linear(X, *list(built()[0].parameters())[:2])) == 0).sum())


def test_training_is_bit_for_bit_the_same(path):
    bare, bare_optimizer = built()
    seen, seen_optimizer = built()
    torch.manual_seed(3)
    expected = train(bare, bare_optimizer, 20)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with chainrule.watch(seen, seen_optimizer, every=2, to=path, full_every=7):
        assert train(seen, seen_optimizer, 20) == expected
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(bare.parameters(), seen.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)


def test_without_a_block_and_without_anything_given(path):
    model, optimizer = built()
    watch = chainrule.watch(to=path)
    train(model, optimizer, 3)
    watch.close()
    watch.close()  # harmless
    steps, gradients = watched(path)
    assert steps == [1, 2, 3]
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    train(model, optimizer, 1)
    assert watch.step_number == 3


def test_a_loss_that_is_a_module_changes_no_name(path):
    model, optimizer = built()
    criterion = nn.CrossEntropyLoss()
    with chainrule.watch(to=path):
        for _ in range(2):
            optimizer.zero_grad()
            criterion(model(X), Y).backward()
            optimizer.step()
    assert set(watched(path)[1]) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("compiled", [None, *COMPILED])
def test_what_runs_between_two_steps_is_not_recorded(path, monkeypatch, compiled):
    model, optimizer = built()
    run = compiled(model) if compiled else model
    recorded = []
    place = "chainrule.monitor.step_series.facts_of"
    real = resolve_name(place)
    monkeypatch.setattr(place, lambda graph, context: recorded.append(graph) or real(graph, context))

    def evaluate():
        model.eval()
        with torch.no_grad():
            run(X)
        run(X)
        (X * 2).sum()
        model.train()

    with chainrule.watch(model, optimizer, to=path):
        train(run, optimizer, 4, evaluate)
    assert {len(graph.modules) for graph in recorded} == {5 if compiled is compiled_module else 4}
    assert len({len(graph.operations) for graph in recorded}) == 1
    assert not any(operation.name.startswith("aten.mul") for graph in recorded for operation in graph.operations)
    assert len(recorded) == (3 if compiled is compiled_function else 4)  # it is not known to be one before it has run


def test_a_model_that_is_trained_in_eval_mode(path):
    model, optimizer = built()
    model.eval()
    with chainrule.watch(model, optimizer, to=path):
        train(model, optimizer, 4)
    assert watched(path)[0] == [1, 2, 3, 4]


# -- steps in full ----------------------------------------------------------------------------------------------------


def test_steps_in_full(path):
    model, optimizer = built()
    with chainrule.watch(model, optimizer, every=10, to=path, full_every=3) as watch:
        train(model, optimizer, 4)
        watch.record_next("I want to see it")
        losses = train(model, optimizer, 1)
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 3, 5]
        assert [(each.step, each.reason) for each in run.recordings().values()] == [
            (1, "the first watched step"), (3, "every 3 steps"), (5, "I want to see it")
        ]  # fmt: skip
        recording = chainrule.load(run.recordings()[5].file)
        assert [facts.full for facts in run.steps()] == [True, True, True]
    assert recording.loss == losses[0]
    assert recording.verify().passed


def test_a_file_of_a_step_that_cannot_be_written(path):
    model, optimizer = built()
    path.with_name("run.steps").write_text("a file stands where the folder should")
    with (
        chainrule.watch(model, optimizer, to=path, full_every=2),
        pytest.warns(ChainruleWarning, match="could not be saved in full"),
    ):
        train(model, optimizer, 3)
    assert watched(path)[0] == [1, 2, 3]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_written_stops_nothing(tmp_path):
    model, optimizer = built()
    missing = tmp_path / "none" / "run.db"
    with pytest.warns(ChainruleWarning) as raised, chainrule.watch(model, optimizer, to=missing) as watch:
        train(model, optimizer, 2)
    assert str(raised[0].message) == (
        f"chainrule: {missing} cannot be written as the file of a run: unable to open database file. Give a path in a "
        "writable folder, on a disk with free space. The training is watched without a file."
    )
    assert watch.watched == 2


def test_where_warnings_are_errors_the_training_goes_on_too(tmp_path, capsys):
    model, optimizer = built()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with chainrule.watch(model, optimizer, to=tmp_path / "none" / "run.db"):
            train(model, optimizer, 2)
    assert "cannot be written as the file of a run" in capsys.readouterr().err


def test_a_failure_of_ours_ends_the_watch_and_not_the_training(path, monkeypatch):
    def fail(graph, around):
        raise ValueError("a bug of ours")

    monkeypatch.setattr("chainrule.monitor.step_series.facts_of", fail)
    model, optimizer = built()
    bare, bare_optimizer = built()
    with pytest.warns(ChainruleWarning, match="watching ended at step 4: ValueError: a bug of ours"):  # noqa: SIM117
        with chainrule.watch(model, optimizer, to=path, every=4, start=2):
            assert train(model, optimizer, 6) == train(bare, bare_optimizer, 6)
    with runs.open(path) as run:
        assert run.status == "watching ended: ValueError: a bug of ours"


def test_an_exception_of_the_training_is_kept(path):
    model, optimizer = built()
    with pytest.raises(KeyError), chainrule.watch(model, optimizer, to=path):
        train(model, optimizer, 2)
        model(X)
        raise KeyError("label")
    with runs.open(path) as run:
        assert run.status == "KeyError: 'label'"
        assert [facts.step for facts in run.steps()] == [1, 2]


def test_a_step_that_fails_and_is_tried_again(path):
    model, optimizer = built()

    def broken():
        raise RuntimeError("out of memory")

    with chainrule.watch(model, optimizer, to=path):
        train(model, optimizer, 1)
        with pytest.raises(RuntimeError):
            optimizer.step(broken)
        train(model, optimizer, 2)
    assert watched(path)[0] == [1, 2, 3]


def test_a_model_that_grows(path):
    model, optimizer = built()
    with chainrule.watch(model, optimizer, to=path):
        train(model, optimizer, 2)
        model.out = nn.Sequential(model.out, nn.Linear(3, 3))
        optimizer.add_param_group({"params": model.out[1].parameters(), "lr": 1e-3})
        train(model, optimizer, 2)
    steps, gradients = watched(path)
    assert steps == [1, 2, 3, 4]
    assert gradients["hidden.weight"].steps == [1, 2, 3, 4]
    assert gradients["out.1.weight"].steps == [3, 4]


def test_a_resumed_run_counts_on(path):
    model, optimizer = built()
    with chainrule.watch(model, optimizer, to=path):
        train(model, optimizer, 3)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        train(model, optimizer, 2)
    again, again_optimizer = built()
    again.load_state_dict(saved[0])
    again_optimizer.load_state_dict(saved[1])
    with chainrule.watch(again, again_optimizer, to=path) as watch:
        train(again, again_optimizer, 1)
    assert watch.step_number == 4
    with runs.open(path) as run:
        assert (run.runs, [facts.step for facts in run.steps()]) == ((1,), [1, 2, 3, 4])


def test_a_watch_inside_a_recording_leaves_its_steps_out(path):
    model, optimizer = built()
    with pytest.warns(ChainruleWarning, match=r"step 1 was not watched: a .* of your own ran in it"):  # noqa: SIM117
        with chainrule.watch(model, optimizer, to=path), chainrule.record() as recording:
            train(model, optimizer, 1)
    assert len(recording.parameters) == 4


# -- large tensors ----------------------------------------------------------------------------------------------------


def test_of_large_tensors_figures_are_taken_while_the_step_runs(path):
    """Above some KiB no numbers are kept: the figures must be those of the numbers all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(64, 64)
    seen = []
    with chainrule.watch(model, optimizer, to=path):
        for _ in range(2):
            optimizer.zero_grad()
            hidden = model[:2](x).detach()
            before = model[0].weight.detach().clone()
            model(x).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            weight = model[0].weight.detach()
            seen.append((before, model[0].weight.grad.clone(), weight - before, hidden))
    kinds = (("parameter", "0.weight"), ("parameter gradient", "0.weight"), ("update", "0.weight"), ("value", "1"))
    with runs.open(path) as run:
        for place, (kind, name) in enumerate(kinds):
            close = 0.05 if kind == "update" else 1e-4  # of updates of large parameters an even sample is looked at
            for found, real in zip(run.series(kind, name).statistics, [each[place] for each in seen], strict=True):
                assert found.norm == pytest.approx(real.norm().item(), rel=close)
                assert found.std == pytest.approx(real.std(correction=0).item(), rel=close)
                assert found.elements == real.numel()
                assert kind == "update" or found.zeros == int((real == 0).sum())
        assert [facts.clipped[1] for facts in run.steps()] == pytest.approx([1e-3] * 2, rel=1e-3)
