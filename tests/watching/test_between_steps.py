"""What a watch knows of the steps that it does not record: their losses, and which operation lost numbers."""

import math
import weakref

import pytest
import torch
from torch import nn

import chainrule
from chainrule import runs

pytestmark = pytest.mark.trains
BROKEN = 8


def train(loss_of, steps=12, every=5, spoil=None, skip=False, watched=True, **options):
    """Trains a small network on `loss_of(model, x)`; `spoil` changes the batch of step `BROKEN`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = chainrule.watch(model, optimizer, every=every, **options) if watched else None
    for step in range(1, steps + 1):
        x = torch.randn(16, 4)
        if step == BROKEN and spoil:
            spoil(x)
        loss = loss_of(model, x)
        optimizer.zero_grad()
        loss.backward()
        if not skip or loss.isfinite():
            optimizer.step()
    if watch is not None:
        watch.close()
    return watch, model, torch.get_rng_state()


def root(model, x):
    return torch.sqrt((model(x) - model(x.roll(1, 0))).square().sum(1)).mean()


def drops(model, x):
    return nn.functional.dropout(model(x), 0.5).square().mean() + x.mean()


def plain(model, x):
    return model(x).square().mean()


BIRTHS = {
    "division": (
        lambda model, x: (model(x).square().sum(1) / x.abs().sum(1)).mean(),
        lambda x: x[3].zero_(),
        "div turns",
    ),
    "root": (root, lambda x: x.copy_(x[:1].expand(16, 4)), "sqrt"),
    "data": (plain, lambda x: x[2].fill_(torch.nan), "x contains NaN"),
    "dropout": (drops, lambda x: x[1].fill_(torch.nan), "x contains NaN"),
}


@pytest.mark.parametrize("name", BIRTHS)
def test_a_step_that_lost_numbers_is_run_again_and_the_training_stays_the_same(name):
    loss_of, spoil, said = BIRTHS[name]
    watch, model, random = train(loss_of, spoil=spoil)
    first = min((each for each in watch.findings if each.severity == "error"), key=lambda each: each.since)
    assert (first.since, first.until) == (BROKEN, BROKEN)
    assert first.id == ("non-finite-backward" if name == "root" else "non-finite-forward")
    assert said in first.text
    assert "test_between_steps.py" in first.place or name in ("data", "dropout")
    (how,) = (each for each in first.evidence if "was not watched" in each)
    assert how.startswith(f"Step {BROKEN} was not watched")
    assert "of step 5" in how
    assert ("random numbers" in how) == (name == "dropout")
    _, bare, bare_random = train(loss_of, spoil=spoil, watched=False)
    assert all(map(torch.equal, map(bits, model.parameters()), map(bits, bare.parameters())))
    assert torch.equal(random, bare_random)


def bits(parameter):
    return parameter.detach().view(torch.int32)


def test_a_step_with_other_operations_names_none():
    """The loss that comes out of the last watched step's operations is another one."""
    once = iter(range(1, 100))
    watch, *_ = train(lambda model, x: plain(model, x) * (math.nan if next(once) == BROKEN else 1.0))
    (first,) = (each for each in watch.findings if each.severity == "error" and each.since == BROKEN)
    assert first.text.startswith(f"The update of step {BROKEN} makes 0.weight")


def test_a_lost_loss_is_noticed_where_the_step_is_left_out():
    watch, *_ = train(plain, spoil=lambda x: x[2].fill_(torch.nan), skip=True)
    (found,) = (each for each in watch.findings if each.severity == "error")
    assert found.since == BROKEN
    assert [(each.step, each.lost) for each in watch.history.noticed] == [(BROKEN, False)]


def test_a_scaler_that_tries_too_large_a_scale_is_no_finding():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, growth_factor=2.0**60)
    with chainrule.watch(model, optimizer, every=50) as watch:
        for _ in range(30):
            optimizer.zero_grad()
            scaler.scale(plain(model, torch.randn(16, 4))).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() < 2.0**120
    assert [each for each in watch.findings if each.severity != "note"] == []


def test_the_losses_of_all_steps_are_known_and_stored(tmp_path):
    path, losses = tmp_path / "run.db", []

    def kept(model, x):
        losses.append(plain(model, x))
        return losses[-1]

    watch, *_ = train(kept, to=path)
    seen = {each.step: each.loss for each in watch.history.unwatched}
    assert list(seen) == [2, 3, 4, 6, 7, 8, 9, 11, 12]
    assert all(seen[step] == losses[step - 1].item() for step in seen)
    with runs.open(path) as run:
        assert run.unwatched() == run.history().unwatched == watch.history.unwatched


def test_losses_that_cannot_be_compared_with_those_of_watched_steps_are_left_out():
    """Two passes make a step, and one of them does not reach the parameter that is looked at."""
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.05)
    with chainrule.watch([first, second], optimizer, every=5) as watch:
        for _ in range(9):
            optimizer.zero_grad()
            for model in (first, second):
                plain(model, torch.randn(16, 4)).backward()
            optimizer.step()
    assert watch.history.unwatched == []


def test_a_spike_between_watched_steps_is_found_and_another_task_is_none():
    watch, *_ = train(plain, steps=40, every=10, spoil=None)
    assert not [each for each in watch.findings if each.id == "loss-spike"]
    once = iter(range(1, 100))
    watch, *_ = train(lambda model, x: plain(model, x * (100 if next(once) == 27 else 1)), steps=40, every=10)
    (spike,) = (each for each in watch.findings if each.id == "loss-spike")
    assert (spike.since, spike.severity) == (27, "note")  # it came down at once, and may be that of a rare task
    once = iter(range(1, 100))
    rare = lambda model, x: plain(model, x) + (100 * model(-x).exp().mean() if next(once) == 27 else 0)  # noqa: E731
    watch, *_ = train(rare, steps=40, every=10)
    assert not [each for each in watch.findings if each.id == "loss-spike"]


def test_what_the_users_code_deletes_is_freed():
    held = torch.randn(1000)
    freed = weakref.ref(held)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = chainrule.watch(model, optimizer, every=3)
    for step in range(1, 6):
        x = torch.full((2, 4), torch.nan if step == 5 else 1.0)
        optimizer.zero_grad()
        plain(model, x).backward()
        optimizer.step()
    # Step 5 was not watched, and has been run again with the variables of this function.
    assert any("x contains NaN" in str(each) for each in watch.findings)
    del held
    assert freed() is None
    watch.close()


def test_the_loss_of_a_step_that_climbs_first_is_that_at_its_own_weights():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with chainrule.watch(model, optimizer, every=4) as watch:
        for _ in range(12):
            x = torch.randn(16, 4)
            losses.append(loss := plain(model, x))
            loss.backward()
            with torch.no_grad():
                climb = [0.5 * each.grad for each in model.parameters()]
                torch._foreach_add_(list(model.parameters()), climb)
            optimizer.zero_grad()
            plain(model, x).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), climb)
            optimizer.step()
            optimizer.zero_grad()
    known = {each.step: each.loss for each in (*watch.history.steps, *watch.history.unwatched)}
    assert known == {step: pytest.approx(loss.item()) for step, loss in enumerate(losses, 1)}
