"""Steps of all kinds: accumulated, clipped, scaled, of several optimizers, with a closure, by hand."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.errors import ChainruleError, ChainruleWarning
from tests.watching.usual import Model, X, Y, built, train

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nothing_is_left")]


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
        losses = [(step, optimizer.step(closure).item()) for step in (1, 2, 3)]
    with runs.open(path) as run:
        assert run.losses() == losses  # those of the first call
        assert [facts.step for facts in run.steps()] == [1, 2, 3]
        assert all(facts.passes >= 2 for facts in run.steps())
        assert run.series("update", "out.weight").steps == [1, 2, 3]
        assert run.series("parameter gradient", "out.weight").steps == [1, 2, 3]


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
