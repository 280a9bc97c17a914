"""A watch around real loops: what it sees is what happened, and the training is what it is without."""

import copy
import threading
import warnings
from functools import partial
from pkgutil import resolve_name

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

import chainrule
from chainrule import runs
from chainrule.errors import ChainruleError, ChainruleWarning

pytestmark = pytest.mark.trains
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.out = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.act(self.hidden(x)))


def built(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = Model()
    return model, kind(model.parameters(), **{"lr": 1e-2, **options})


def train(model, optimizer, steps, after=lambda: None):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after()
    return losses


def compiled_module(model):
    return torch.compile(model, backend="eager")


def compiled_method(model):
    model.compile(backend="eager")
    return model


def compiled_function(model):
    return torch.compile(lambda x: model(x), backend="eager")


COMPILED = (compiled_module, compiled_method, compiled_function)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not optimizer_hooks._global_optimizer_pre_hooks
    assert not optimizer_hooks._global_optimizer_post_hooks
    assert not module_hooks._global_forward_pre_hooks
    assert not module_hooks._global_forward_hooks


def watched(path, kind="parameter gradient"):
    with runs.open(path) as run:
        return [facts.step for facts in run.steps()], {
            each.name: run.series(kind, each.name) for each in run.tensors(kind)
        }


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
    place = "chainrule.monitor.watcher.facts_of"
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


# -- steps of all kinds -----------------------------------------------------------------------------------------------


def test_accumulated_gradients(path):
    model, optimizer = built()
    with chainrule.watch(model, optimizer, to=path):
        for _ in range(2):
            optimizer.zero_grad()
            losses = [
                F.cross_entropy(model(part), target) / 4 for part, target in zip(X.chunk(4), Y.chunk(4), strict=True)
            ]
            for loss in losses:
                loss.backward()
            optimizer.step()
    with runs.open(path) as run:
        assert [facts.passes for facts in run.steps()] == [4, 4]
        assert run.losses()[1][1] == pytest.approx(sum(losses).item())
        gradient = run.series("parameter gradient", "out.weight").statistics[-1]
        assert gradient.norm == pytest.approx(model.out.weight.grad.norm().item(), rel=1e-5)


def test_clipping_before_and_after(path):
    model, optimizer = built()
    norms = []
    with chainrule.watch(model, optimizer, to=path):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05).item())
            optimizer.step()
    with runs.open(path) as run:
        before, after = zip(*(facts.clipped for facts in run.steps()), strict=True)
        assert before == pytest.approx(norms, rel=1e-5)
        assert after == pytest.approx([0.05] * 2, rel=1e-4)


def scaled(watch_options, path, breaks, scaler_of=lambda s: None, explicit=False):
    """Train with a GradScaler; at the steps in `breaks` the loss overflows, so that the scaler leaves them out."""
    model, optimizer = built(torch.optim.SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    real = []
    with chainrule.watch(model, optimizer, to=path, scaler=scaler_of(scaler), **watch_options) as watch:
        for step in range(1, 9):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            scaler.scale(loss * (torch.inf if step in breaks else 1)).backward()
            scaler.unscale_(optimizer)
            real.append((loss.item(), model.out.weight.grad.norm().item()))
            scaler.step(optimizer)
            scaler.update()
            if explicit:
                watch.step()
    return watch, real


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_gradscaler_and_the_steps_that_it_leaves_out(path, given, explicit):
    watch, real = scaled({}, path, {3, 6}, (lambda scaler: scaler) if given else (lambda scaler: None), explicit)
    with runs.open(path) as run:
        steps = run.steps()
        assert [facts.step for facts in steps] == list(range(1, 9)) == list(range(1, watch.step_number + 1))
        assert [facts.step for facts in steps if facts.skipped] == [3, 6]
        assert [facts.scale for facts in steps if not facts.skipped] == [1024, 1024, 512, 512, 256, 256]
        for step, loss in run.losses():
            assert loss == pytest.approx(real[step - 1][0], rel=1e-5)
        for step, gradient in run.series("parameter gradient", "out.weight"):
            assert gradient.norm == pytest.approx(real[step - 1][1], rel=1e-5)
        assert {facts.passes for facts in steps} == {1}
        values = run.series("gradient", "out").statistics
        assert values[0].norm < 1  # unscaled: times 1024 it is not


def test_steps_left_out_between_the_watched_ones(path):
    watch, _ = scaled({"every": 4}, path, {2, 3})
    assert watch.step_number == 8
    with runs.open(path) as run:
        assert [(facts.step, facts.skipped) for facts in run.steps()] == [
            (1, False),
            (2, True),
            (3, True),
            (5, False),
            (8, False),
        ]


def test_two_optimizers_in_turn(path):
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
    of_critic = torch.optim.SGD(critic.parameters(), lr=1e-2)
    losses = []
    with chainrule.watch([generator, critic], [of_generator, of_critic], every=2, to=path) as watch:
        for _ in range(4):
            for _ in range(2):
                of_critic.zero_grad()
                (critic(torch.randn(3, 4)).mean() - critic(generator(torch.randn(3, 2)).detach()).mean()).backward()
                of_critic.step()
            of_generator.zero_grad()
            loss = critic(generator(torch.randn(3, 2))).mean()
            loss.backward()
            of_generator.step()
            losses.append(loss.item())
    assert watch.step_number == 4
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]
        assert [loss for _, loss in run.losses()] == [losses[0], losses[1], losses[3]]  # of the last to step
        assert {each.name for each in run.tensors("update")} == {
            "generator.weight", "generator.bias", "critic.weight", "critic.bias"
        }  # fmt: skip
        assert run.steps()[0].rates == (1e-3, 1e-2)


def test_one_optimizer_for_some_parameters_and_one_for_the_rest(path):
    torch.manual_seed(0)
    model = Model()
    matrices = torch.optim.SGD([model.hidden.weight, model.out.weight], lr=0.1)
    rest = torch.optim.Adam([{"params": [model.hidden.bias]}, {"params": [model.out.bias], "lr": 1e-4}], lr=1e-3)
    with chainrule.watch(model, to=path):
        for _ in range(4):
            model.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            matrices.step()
            rest.step()
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 3, 4]
        assert run.losses()[-1][1] == loss.item()
        assert run.steps()[-1].rates == (0.1, 1e-3, 1e-4)
        updates = {each.name: run.series("update", each.name).steps for each in run.tensors("update")}
        assert updates["hidden.weight"] == [1, 2, 3, 4]
        assert updates["out.bias"] == [1, 2, 3, 4]


def test_an_optimizer_with_a_closure(path):
    model, optimizer = built(torch.optim.LBFGS, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with chainrule.watch(model, optimizer, to=path):
        for _ in range(3):
            optimizer.step(closure)
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 3]
        assert all(facts.passes >= 2 for facts in run.steps())
        assert run.series("update", "out.weight").steps == [1, 2, 3]
        assert run.series("parameter gradient", "out.weight").steps == [1, 2, 3]


def test_the_loss_of_a_closure_is_that_of_its_first_call(path):
    model, optimizer = built(torch.optim.LBFGS, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with chainrule.watch(model, optimizer, to=path):
        losses = [(step, optimizer.step(closure).item()) for step in (1, 2, 3)]
    with runs.open(path) as run:
        assert run.losses() == losses


def test_what_autograd_grad_began_from_is_no_loss(path):
    model, optimizer = built()
    losses = []
    with chainrule.watch(model, optimizer, to=path):
        for step in (1, 2, 3):
            optimizer.zero_grad()
            x = X.clone().requires_grad_()
            output = model(x)
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
            loss = F.cross_entropy(output, Y) + slope.square().mean()
            loss.backward()
            optimizer.step()
            losses.append((step, loss.item()))
    with runs.open(path) as run:
        assert run.losses() == losses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every=0): every is a whole number of steps, at least 1."),
        ({"every": 1.5}, "every=1.5"),
        ({"full_every": -1}, "full_every=-1"),
        ({"start": -2}, "start=-2): start is a whole number of steps, at least 0."),
        ({"thresholds": 3}, "give a chainrule.Thresholds"),
        ({"model": "model"}, "chainrule.watch(model=...) got str. Pass one model of PyTorch"),
        ({"model": torch.optim.SGD([nn.Parameter(X)])}, "got SGD"),
        ({"optimizer": nn.Linear(1, 1)}, "got Linear. Pass one optimizer of PyTorch"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_it_begins(options, words):
    with pytest.raises(ChainruleError) as refused:
        chainrule.watch(**options)
    assert words in str(refused.value)


def test_an_update_by_hand(path):
    model, _ = built()
    watch = chainrule.watch(model, to=path, every=2)
    for _ in range(5):
        model.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        watch.step()
    watch.close()
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4]
        ratio = run.series("update", "out.weight").statistics[-1].norm
        assert ratio > 0


def test_no_step_ever_ends(path, monkeypatch):
    monkeypatch.setattr("chainrule.monitor.step_boundaries.MANY_PASSES", 5)
    monkeypatch.setattr("chainrule.monitor.step_boundaries.MANY_OPERATIONS", 10)
    model, _ = built()
    with chainrule.watch(model, to=path) as watch:
        for _ in range(6):
            F.cross_entropy(model(X), Y).backward()
        with pytest.warns(ChainruleWarning, match=r"Call `watch.step\(\)` at the end"):
            model(X)
        model(X)
    assert watch.watched == 0


def test_other_threads_are_left_alone(path):
    model, optimizer = built()
    other = threading.Thread(target=lambda: train(*built(), 3))
    with chainrule.watch(to=path) as watch:
        train(model, optimizer, 1)
        other.start()
        other.join()
        train(model, optimizer, 1)
    assert watch.step_number == 2


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

    monkeypatch.setattr("chainrule.monitor.watcher.facts_of", fail)
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


def test_a_watch_inside_a_recording_ends_with_a_sentence(path):
    model, optimizer = built()
    with pytest.warns(ChainruleWarning, match="watching ended at step 1: RecordingError"):  # noqa: SIM117
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


# -- compiled code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("given", [True, False])
def test_compiled_models(path, compiled, given):
    losses = {}
    for watched in (False, True):
        model, optimizer = built()
        run = compiled(model)
        watch = chainrule.watch(*((model, optimizer) if given else ()), to=path, every=3) if watched else None
        losses[watched] = []
        for _ in range(7):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(X), Y)
            loss.backward()
            optimizer.step()
            losses[watched].append(loss.item())
    watch.close()
    assert losses[True] == losses[False]
    with runs.open(path) as found:
        assert {facts.step for facts in found.steps()} >= {3, 6}
        assert {each.name for each in found.tensors("parameter gradient")} == {n for n, _ in model.named_parameters()}


def compiled_update(model, optimizer):
    update = torch.compile(lambda: optimizer.step(), backend="eager")

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        update()
        return loss.item()

    return step


def compiled_step(model, optimizer):
    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(step, backend="eager")
    return lambda: compiled().item()


@pytest.mark.filterwarnings("ignore")  # the compiler's own, of itself
@pytest.mark.parametrize("training", [compiled_update, compiled_step])
@pytest.mark.parametrize("every", [1, 3])
def test_a_step_that_ends_in_compiled_code(path, training, every):
    """Modes that were taken off in there would leave PyTorch's next operation lost."""
    losses = {}
    for watched in (False, True):
        model, optimizer = built()
        step = training(model, optimizer)
        watch = chainrule.watch(model, optimizer, to=path, every=every) if watched else None
        losses[watched] = [step() + 0 * torch.rand(1).item() for _ in range(7)]
    watch.close()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with runs.open(path) as found:
        seen = list(found.steps())
        assert {facts.step for facts in seen} >= ({3, 4, 5, 6, 7} if every == 1 else {3, 6})
        assert [facts.loss for facts in seen] == [losses[True][facts.step - 1] for facts in seen]
        assert {each.name for each in found.tensors("update")} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_is_told_the_same_whatever_else_was_compiled_in_the_process(tmp_path, closure):
    def told(name):
        model, optimizer = built()

        def backward(x):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), Y)
            loss.backward()
            return loss

        with chainrule.watch(model, optimizer, to=tmp_path / name) as watch:
            for step in range(3):
                x = X * (step + 1)
                if step == 1:
                    watch.record_next()
                if closure:
                    optimizer.step(partial(backward, x))
                else:
                    backward(x)
                    optimizer.step()
        with runs.open(tmp_path / name) as run:
            (full,) = run.recordings().values()
            assert chainrule.load(full.file).is_whole
            return {(t.kind, t.name): run.series(t.kind, t.name).statistics for t in run.tensors()}

    before = told("before.db")
    torch.compile(lambda x: x + 1, backend="eager")(X)
    assert told("after.db") == before
