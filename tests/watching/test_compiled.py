"""Compiled models and steps are watched, and are what they are without."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

import chainrule
from chainrule import runs
from tests.watching.usual import COMPILED, X, Y, built

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nothing_is_left")]


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
def test_a_step_has_the_same_figures_whatever_else_was_compiled_in_the_process(tmp_path, closure):
    def figures(name):
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

    before = figures("before.db")
    torch.compile(lambda x: x + 1, backend="eager")(X)
    assert figures("after.db") == before
