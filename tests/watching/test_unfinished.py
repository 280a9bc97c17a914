"""A step in which the watch ends before its update: what is lost in it is found, and nothing is made up."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.cli import commands
from chainrule.errors import ChainruleWarning

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("nothing_is_left")]
NAN = torch.nan


class Model(nn.Module):
    """Takes the root of what it is given, so that a number below 0 makes NaN, and 0 an infinite gradient."""

    def __init__(self, wide=8):
        super().__init__()
        self.hidden, self.act, self.out = nn.Linear(4, wide), nn.ReLU(), nn.Linear(wide, 3)

    def forward(self, x, shift=None):
        made = self.out(self.act(self.hidden(x)))
        return made if shift is None else (made * 0 + shift).sqrt()


class Stop(torch.autograd.Function):
    """Ctrl-C in the middle of the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyboardInterrupt


def train(step_of, steps=6, at=4, **options):
    """`step_of(model, optimizer, x, y, broken)` is a step, False where the loop is left; `broken` at step `at`."""
    torch.manual_seed(0)
    model = Model(options.pop("wide", 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with chainrule.watch(model, optimizer, **options) as watch:
        train.watch = watch
        for step in range(1, steps + 1):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            if step_of(model, optimizer, x, x[:, :3].argmax(1), step == at) is False:
                break
    return watch


def update(loss, optimizer):
    loss.backward()
    optimizer.step()


def grave(watch):
    return [each for each in watch.findings if each.severity != "note"]


def leaving(leave, shift=-1.0):
    """A step that leaves in this way where the loss is not finite."""

    def step(model, optimizer, x, y, broken):
        loss = F.cross_entropy(model(x, shift if broken else None), y)
        return leave() if not torch.isfinite(loss) else update(loss, optimizer)

    return step


def raising(error):
    def leave():
        raise error

    return leave


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_loop_that_is_left_where_the_loss_is_not_finite(tmp_path):
    watch = train(leaving(lambda: False), to=tmp_path / "run.db")
    (found,) = grave(watch)
    assert (found.id, found.severity, found.since, found.where) == ("non-finite-forward", "error", 4, "sqrt")
    assert found.text == "sqrt turns finite numbers into NaN; it is the first to do so."
    assert found.place.startswith("test_unfinished.py:")
    assert "The loss loss is nan, and PyTorch raises no error." in found.evidence
    assert found.evidence[-1] == "Step 4 ended before its update."
    assert (watch.step_number, watch.watched) == (3, 3)
    with runs.open(tmp_path / "run.db") as run:
        assert run.findings() == watch.findings
        assert [facts.step for facts in run.steps()] == [1, 2, 3]
        assert run.series("value", "out").steps == [1, 2, 3]
        assert "Since step 4: sqrt turns finite numbers into NaN" in str(run.document())
        run.save(tmp_path / "run.html")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the loss is nan\nand so on"), "ValueError: the loss is nan"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_an_exception_is_told_with_its_place(error, told):
    with pytest.raises(type(error)):
        train(leaving(raising(error)))
    (found,) = grave(train.watch)
    assert found.id == "non-finite-forward"
    assert found.evidence[-1].startswith(f"Step 4 ended before its update: {told} (test_unfinished.py:")


def test_leaving_the_process_is_no_error():
    with pytest.raises(SystemExit):
        train(leaving(raising(SystemExit(3))))
    (found,) = grave(train.watch)
    assert found.evidence[-1] == "Step 4 ended before its update."


def test_the_very_first_step(tmp_path):
    watch = train(leaving(lambda: False), at=1, to=tmp_path / "run.db")
    assert [each.since for each in grave(watch)] == [1]
    with runs.open(tmp_path / "run.db") as run:
        text = str(run.document())
        run.save(tmp_path / "run.html")
    assert "No step has been watched yet." in text
    assert "sqrt turns finite numbers into NaN" in text


@pytest.mark.parametrize("wide", [8, 2048])
def test_a_step_with_all_its_numbers_and_one_with_figures_alone(wide):
    for options in ({}, {"full_every": 4}):
        (found,) = grave(train(leaving(lambda: False), wide=wide, **options))
        assert (found.id, found.where, found.since) == ("non-finite-forward", "sqrt", 4)


def test_where_numbers_were_not_kept_the_origin_is_told_all_the_same():
    def step(model, optimizer, x, y, broken):
        hidden = model.hidden(x)  # of 64 KiB and more
        loss = model.out((hidden if broken else hidden.square() + 1).log()).square().mean()
        return False if not torch.isfinite(loss) else update(loss, optimizer)

    (found,) = grave(train(step, wide=2048))
    assert (found.id, found.since) == ("non-finite-forward", 4)
    assert found.text == "log turns finite numbers into non-finite ones; it is the first to do so."


def test_a_forward_pass_that_is_broken_off():
    def step(model, optimizer, x, y, broken):
        logits = model(x, -1.0 if broken else None)
        if not torch.isfinite(logits).all():
            raise ValueError("logits")
        return update(F.cross_entropy(logits, y), optimizer)

    with pytest.raises(ValueError, match="logits"):
        train(step)
    (found,) = grave(train.watch)
    assert found.severity == "error"
    assert "The step reached logits, which contains it." in found.evidence


@pytest.mark.parametrize("ending", ["anomaly", "clip", "Ctrl-C"])
@pytest.mark.parametrize("full_every", [None, 4])
def test_a_backward_pass_that_loses_numbers(ending, full_every):
    def step(model, optimizer, x, y, broken):
        with torch.autograd.set_detect_anomaly(broken and ending == "anomaly"):
            logits = model(
                Stop.apply(x.requires_grad_()) if broken and ending == "Ctrl-C" else x, 0.0 if broken else None
            )
            F.cross_entropy(logits, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()

    with pytest.raises((RuntimeError, KeyboardInterrupt)), pytest.warns() if ending == "anomaly" else nullcontext():
        train(step, full_every=full_every)
    (found,) = grave(train.watch)
    assert (found.id, found.severity, found.since) == ("non-finite-backward", "error", 4)
    assert "sqrt" in found.text
    assert "Step 4 ended before its update: " in found.evidence[-1]


def test_what_only_follows_from_an_earlier_step_is_not_told_again():
    def step(model, optimizer, x, y, broken):
        loss = F.cross_entropy(model(x, 0.0 if broken else None), y)  # an infinite gradient, so NaN from then on
        return False if not torch.isfinite(loss) else update(loss, optimizer)

    (found,) = grave(train(step))
    assert (found.id, found.since) == ("non-finite-backward", 4)


def test_what_held_until_then_still_holds():
    def step(model, optimizer, x, y, broken):
        loss = F.cross_entropy(F.softmax(model(x, -1.0 if broken else None), 1), y)
        return False if not torch.isfinite(loss) else update(loss, optimizer)

    found = {each.id: each for each in grave(train(step))}
    assert set(found) == {"softmax-before-cross-entropy", "non-finite-forward"}
    assert (found["softmax-before-cross-entropy"].since, found["softmax-before-cross-entropy"].until) == (1, None)


def watched_script(script, every):
    """The exit status of `chainrule watch`, what it says, and the findings."""
    path = script.parent / f"run{every}.db"
    arguments = ["watch", str(script), "--every", str(every), "--plain", "--to", str(path)]
    result = CliRunner().invoke(commands, arguments, prog_name="chainrule")
    with runs.open(path) as run:
        return result.exit_code, result.stderr, run.findings()


def test_a_script_tells_it(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "while True:\n"
        "    loss = (model(torch.ones(2, 4)) * 0).log().sum()\n"
        "    if torch.isinf(loss): raise ValueError('infinite')\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
    )
    status, said, (found,) = watched_script(script, 50)
    assert (status, found.since) == (1, 1)
    assert found.evidence[-1] == "Step 1 ended before its update: ValueError: infinite (train.py:6)."
    error = (
        "chainrule: error since step 1: log turns finite numbers into infinity; it is the first to do so (train.py:5)."
    )
    assert error in said
    told = f"chainrule: {script} ended in the middle of its first training step: 1 finding."
    assert said.splitlines()[-1] == f"{told} `chainrule show {tmp_path / 'run50.db'}` shows the run."


def test_a_script_that_fails_in_a_step_that_was_not_watched_is_told_how_to_see_it(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for step in range(1, 9):\n"
        "    loss = (model(torch.ones(2, 4)) * (0 if step == 6 else 1)).square().log().sum()\n"
        "    if torch.isinf(loss): raise ValueError('infinite')\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
    )
    hint = " It ended in step 6, which was not watched: --every 1 watches and examines every step."
    assert hint in watched_script(script, 50)[1]
    _, said, findings = watched_script(script, 1)
    assert "steps were watched" in said
    assert hint not in said
    assert [(found.id, found.since) for found in findings if found.severity == "error"] == [("non-finite-forward", 6)]


def test_an_exception_that_ends_a_process_without_a_block(tmp_path):
    path, script = tmp_path / "run.db", tmp_path / "train.py"
    script.write_text(
        "import torch, chainrule\n"
        "model = torch.nn.Linear(4, 1)\n"
        f"chainrule.watch(model, to={str(path)!r})\n"
        "loss = (model(torch.ones(2, 4)) * 0).log().sum()\n"
        "raise ValueError('infinite')\n"
    )
    assert subprocess.run([sys.executable, script], capture_output=True, check=False).returncode == 1
    with runs.open(path) as run:
        assert run.status == "ValueError: infinite"
        (found,) = run.findings()
    assert found.evidence[-1] == "Step 1 ended before its update: ValueError: infinite (train.py:5)."


# -- what is not ------------------------------------------------------------------------------------------------------


def forward_alone(model, optimizer, x, y, broken):
    loss = F.cross_entropy(model(x), y)
    return False if broken else update(loss, optimizer)


def without_the_update(model, optimizer, x, y, broken):
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return False if broken else optimizer.step()


def an_evaluation(model, optimizer, x, y, broken):
    """In train mode, of one sample of another size, with a loss that is not used and an accuracy of no samples."""
    if not broken:
        return update(F.cross_entropy(model(x), y), optimizer)
    logits = model(100 * x[:1])
    right = (logits.argmax(1) == y[:1]).float()
    (right[:0].sum() / 0 * right.new_zeros(64, 128)).log()
    F.cross_entropy(logits, y[:1])
    return False


def a_rollout_with_masked_actions(model, optimizer, x, y, broken):
    if not broken:
        return update(F.cross_entropy(model(x), y), optimizer)
    torch.distributions.Categorical(logits=model(x) + torch.tensor([0.0, 0.0, -torch.inf])).sample()
    (torch.zeros(3) / 0).sum()
    return False


def a_shape_that_does_not_fit(model, optimizer, x, y, broken):
    return update(F.cross_entropy(model(x[:, :3] if broken else x), y), optimizer)


@pytest.mark.parametrize(
    "step",
    [
        forward_alone,
        without_the_update,
        an_evaluation,
        a_rollout_with_masked_actions,
        a_shape_that_does_not_fit,
    ],
)
@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("full_every", [None, 5])
def test_a_healthy_run_that_ends_in_the_middle(step, at, full_every):
    fails = step is a_shape_that_does_not_fit
    with pytest.raises(RuntimeError) if fails else nullcontext():
        train(step, at=at, full_every=full_every)
    assert [each.id for each in grave(train.watch)] == ["forward-failed"] * fails
    assert train.watch.step_number == at - 1


def test_a_scaler_that_is_yet_to_leave_the_step_out():
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(8, 4)
    with chainrule.watch(model, optimizer) as watch:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(x).square().mean() if step < 3 else model(x, 0.0).sum()
            scaler.scale(loss).backward()
            if step < 3:
                scaler.step(optimizer)
                scaler.update()
    assert grave(watch) == []


def test_a_step_that_was_not_to_be_watched_is_not_known():
    watch = train(leaving(lambda: False), every=50)
    assert (watch.watched, grave(watch)) == (1, [])


def test_the_training_goes_on_as_if_nothing_had_been_there():
    """The watch is closed in the middle of a step, which is then done to its end."""

    def trained(close_at):
        def step(model, optimizer, x, y, broken):
            loss = F.cross_entropy(model(x), y)
            if broken and close_at:
                train.watch.close()
            update(loss, optimizer)
            models.append(model)

        models = []
        train(step, wide=2048)
        return models[-1]

    for one, other in zip(trained(False).parameters(), trained(True).parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)


def test_a_look_that_fails_is_said_and_hides_nothing_else(monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug of ours")

    monkeypatch.setattr("chainrule.monitor.watcher.Examiner.examine_unfinished", fail)
    with pytest.warns(ChainruleWarning, match="the end of the watch failed in part: ValueError: a bug of ours"):
        watch = train(lambda model, optimizer, x, y, broken: forward_alone(model, optimizer, x, 0 * y, broken))
    assert watch.step_number == 3
    assert watch.history.steps[-1].step == 3


# -- a forward pass whose loss was left out ---------------------------------------------------------------------------


def test_a_batch_that_is_left_out_belongs_to_no_update(tmp_path):
    """`continue` where the loss is not finite: the next forward pass is recorded in the same step, and is the step."""
    losses = []

    def step(model, optimizer, x, y, broken):
        loss = F.cross_entropy(model(x, -1.0 if broken else None), y)
        if torch.isfinite(loss):
            losses.append(loss.item())
            update(loss, optimizer)

    watch = train(step, to=tmp_path / "run.db")
    with runs.open(tmp_path / "run.db") as run:
        assert run.losses() == list(enumerate(losses, 1))
        assert {facts.passes for facts in run.steps()} == {1}
        assert {each.name for each in run.tensors("value")} >= {"hidden", "act", "out"}
        assert not [each.name for each in run.tensors() if "#" in each.name or "@" in each.name]
        for kind in ("value", "gradient"):
            assert run.series(kind, "out").steps == [1, 2, 3, 4, 5]
        assert not any(each.not_finite for each in run.series("value", "out").statistics)
    (found,) = grave(watch)
    assert (found.id, found.severity, found.since, found.until) == ("non-finite-forward", "warning", 4, 4)
    assert "It reaches neither the loss of a backward pass nor a parameter's gradient." in found.evidence
