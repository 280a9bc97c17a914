"""Kinds about layers, modes, frozen parts, schedules, attention and padding: their edges, and what is healthy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import chainrule
from chainrule.diagnostics import findings_over_time
from chainrule.graph.history import History, StepFacts
from chainrule.graph.statistics import Statistics
from tests.bed.loops.models import FUTURE, Deep, Reader, Rows, Tagger, normed, with_a_large_key
from tests.bed.loops.networks import Rows as Recurrent

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def found_in(model, x, loss=lambda output: output.square().mean(), optimizer=None, keep="all"):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    with chainrule.record({"model": model, "x": x}, keep=keep) as recording:
        loss(model(x)).backward()
        optimizer.step()
    return {finding.id: finding for finding in recording.findings()}


def watched(model, steps, between=lambda step: None, every=1, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    with chainrule.watch(model, optimizer, every=every, namespace={"model": model}) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
            between(step)
    return {finding.id: finding for finding in watch.findings}


# -- layers -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Of projections of projected rows."""

    def __init__(self):
        super().__init__()
        self.enter, self.attend = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.enter(x.reshape(-1, 8, 8))
        return self.attend(x, x, x)[0]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.value, self.gate = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        x = self.enter(x)
        return self.value(x) * self.gate(x).sigmoid()


class Adapted(nn.Module):
    """A low-rank change of more ranks than there are outputs."""

    def __init__(self):
        super().__init__()
        self.whole, self.down, self.up = nn.Linear(64, 2), nn.Linear(64, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.whole(x) + self.up(self.down(x))


class Pictures(nn.Sequential):
    def forward(self, x):
        return super().forward(x.reshape(-1, 1, 8, 8))


HEALTHY = {
    "an activation": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "a norm": lambda: nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 10)),
    "a batch norm": lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 10)),
    "a bottleneck": lambda: nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)),
    "a frozen layer": lambda: nn.Sequential(nn.Linear(64, 64).requires_grad_(False), nn.Linear(64, 10)),
    "a depthwise convolution": lambda: Pictures(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
                                                nn.Conv2d(8, 16, 1)),
    "a transposed convolution": lambda: Pictures(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2),
                                                 nn.Conv2d(8, 8, 3)),
    "shuffled pixels": lambda: Pictures(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2), nn.Conv2d(1, 3, 3)),
    "an attention": Attention,
    "a recurrent layer": lambda: Recurrent(nn.RNN),
    "gates": Gated,
    "a low-rank change": Adapted,
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_layers_that_are_linear_on_purpose(name):
    assert "no-activation" not in found_in(HEALTHY[name](), torch.randn(8, 64))


def test_what_the_layers_do_together():
    model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.1), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 10))
    finding = found_in(model, torch.randn(8, 64), keep="statistics")["no-activation"]
    assert finding.where == "0"
    assert "64 inputs become 32, and then 10 outputs: 2368 weights do" in finding.evidence[0]


# -- modes ------------------------------------------------------------------------------------------------------------


def test_eval_mode_of_a_whole_model_that_learns_and_of_a_part():
    x = torch.randn(8, 64)
    whole = found_in(normed().eval(), x)["eval-while-training"]
    assert whole.severity == "warning"
    assert whole.sentence.endswith("1 batch norm uses running statistics, 1 dropout is off.")
    part = normed()
    part[1].eval()
    assert found_in(part, x)["eval-while-training"].severity == "note"
    frozen = normed().eval()
    for parameter in frozen[:5].parameters():
        parameter.requires_grad_(False)
    assert found_in(frozen, x)["eval-while-training"].severity == "note"


def test_eval_mode_that_makes_no_difference():
    x = torch.randn(8, 64)
    assert "eval-while-training" not in found_in(normed(), x)
    plain = nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.0), nn.Linear(8, 8)).eval()
    assert "eval-while-training" not in found_in(plain, x)
    body = normed().eval().requires_grad_(False)
    assert "eval-while-training" not in found_in(nn.Sequential(body, nn.Linear(10, 10)), x)


@pytest.mark.parametrize(
    ("evaluates", "severity"),
    [("right", None), ("one pass", None), ("another model", None), ("now and then", "warning"), ("always", "note")],
)
def test_evaluations_between_steps(evaluates, severity):
    model, other = normed(), normed()

    def between(step):
        if evaluates != "always" and step % 4:
            return
        model.train(evaluates != "right")
        with torch.no_grad():
            for _ in range(1 if evaluates == "one pass" else 3):
                (other if evaluates == "another model" else model)(torch.randn(8, 64))
        model.train()

    found = watched(model, 10, between).get("train-while-evaluating")
    assert (found and found.severity) == severity


@pytest.mark.parametrize(("evaluates", "severity"), [(True, "warning"), (False, None)])
def test_an_evaluation_far_from_watched_steps(evaluates, severity):
    model = normed()

    def between(step):
        if step in (3, 17):
            model.train(evaluates)
            with torch.no_grad():
                for _ in range(3):
                    model(torch.randn(8, 64))
            model.train()

    found = watched(model, 41, between, every=5).get("train-while-evaluating")
    assert (found and found.severity) == severity


def test_dropout_follows_the_mode_of_its_module():
    x = torch.randn(8, 64)
    assert "dropout-in-eval" not in found_in(normed().eval(), x)
    finding = found_in(
        type("Model", (nn.Linear,), {"forward": lambda self, x: F.dropout(x @ self.weight)})(8, 64).eval(), x
    )
    assert finding["dropout-in-eval"].severity == "note"


# -- frozen parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frozen", "severity"),
    [(("layers.0.", "layers.1."), "note"), (("layers.1",), "warning"), (("layers.11.",), "note"), ((), None)],
)
def test_which_numbered_layers_are_frozen(frozen, severity):
    model = Deep()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    found = [each for each in [found_in(model, torch.randn(8, 64)).get("frozen-by-name")] if each]
    with chainrule.record({"model": model}) as recording:
        model(torch.randn(8, 64)).mean().backward()
    found += [each for each in recording.findings() if each.id == "frozen-by-name"]
    assert ("warning" in {each.severity for each in found}) == (severity == "warning")
    assert ("note" in {each.severity for each in found}) == (severity is not None)


def test_an_optimizer_without_the_frozen_ones():
    model = Deep()
    model.layers[0].requires_grad_(False)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    assert "frozen-by-name" not in found_in(model, torch.randn(8, 64), optimizer=optimizer)


# -- schedules --------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "StepLR": (lambda optimizer: lr_scheduler.StepLR(optimizer, 30, 0.1), True),
    "StepLR of 7": (lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.5), True),
    "ExponentialLR": (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.95), True),
    "slow ExponentialLR": (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.995), False),
    "MultiStepLR": (lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [60, 80]), False),
    "CosineAnnealingLR": (lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 100), False),
    "with warm restarts": (lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 20), False),
    "OneCycleLR": (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 101), False),
    "LinearLR": (lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 1e-4, 100), False),
    "PolynomialLR": (lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 101, 2.0), False),
    "warm-up and root": (lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, (10 / (step + 1)) ** 0.5)), False),
}  # fmt: skip


def history_of(schedule, every, batches_change=True):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, history = schedule(optimizer), History()
    for step in range(1, 101):
        if step == 1 or step % every == 0:
            history.steps.append(StepFacts(step, 0.0, 1.0, (optimizer.param_groups[0]["lr"],)))
            history.add("input", "x", step, Statistics.of(torch.full((2,), float(step if batches_change else 1))))
        optimizer.step()
        scheduler.step()
    return history


def found_over(history):
    return {each.id: each for each in findings_over_time(history, {each.step: () for each in history.steps})}


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_that_collapses_by_equal_factors(name, every):
    schedule, faulty = SCHEDULES[name]
    assert ("scheduler-per-batch" in found_over(history_of(schedule, every))) == faulty


@pytest.mark.parametrize(("period", "expected"), [(4, True), (40, False)])
def test_a_rate_that_swings(period, expected):
    history = history_of(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, period), 1)
    assert ("scheduler-per-batch" in found_over(history)) == expected


def test_with_the_whole_data_in_each_step_an_epoch_is_one_step():
    schedule, _ = SCHEDULES["StepLR"]
    assert "scheduler-per-batch" not in found_over(history_of(schedule, 1, batches_change=False))


# -- attention --------------------------------------------------------------------------------------------------------

MASKS = {
    "-inf": lambda scores: scores.masked_fill(FUTURE, -math.inf),
    "-1e9": lambda scores: scores.masked_fill(FUTURE, -1e9),
    "added": lambda scores: scores + FUTURE * -1e4,
    "times and added": lambda scores: scores * ~FUTURE - 1e4 * FUTURE,
    "twice": lambda scores: scores.masked_fill(FUTURE, -1e9).masked_fill(FUTURE, -1e4),
    "distances": lambda scores: scores - 0.1 * (torch.arange(8)[:, None] - torch.arange(8)).abs(),
    "in place": lambda scores: scores.masked_fill_(FUTURE, -math.inf),
    "per sample": lambda scores: scores.masked_fill(torch.zeros(len(scores), 1, 8).bool(), -math.inf),
    "nothing to pad": lambda scores: scores + torch.zeros(len(scores), 1, 8),
    "the first operand": lambda scores: FUTURE * -1e4 + scores,
    "minus the largest": lambda scores: scores - scores.amax(-1, keepdim=True).detach(),
    "plus the negative of the largest": lambda scores: scores + -scores.amax(-1, keepdim=True).detach(),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_hide(name):
    found = found_in(Rows(MASKS[name]), torch.randn(48, 64), keep="statistics")
    assert not {"mask-without-effect", "uniform-attention", "one-token-attention"} & set(found)


OPEN = {
    "0": lambda scores: scores.masked_fill(FUTURE, 0.0),
    "a large positive number": lambda scores: scores.masked_fill(FUTURE, 1e9),
    "times": lambda scores: scores * ~FUTURE,
    "beyond the corner": lambda scores: scores.masked_fill(torch.ones(8, 8).triu(8).bool(), -math.inf),
    "zeros": lambda scores: scores + torch.zeros(8, 8),
    "ones": lambda scores: scores + torch.ones(8, 8),
    "zeros and ones": lambda scores: scores + (~FUTURE).float(),
    "the first operand": lambda scores: FUTURE * -1.0 + scores,
    "padding as zeros and ones": lambda scores: scores + (torch.arange(8) < 5).float().expand(len(scores), 1, 8),
    "of queries instead of keys": lambda scores: scores + -1e9 * (torch.arange(8) < 5).float()[:, None],
}


@pytest.mark.parametrize("name", OPEN)
def test_masks_that_hide_nothing(name):
    found = found_in(Rows(OPEN[name]), torch.randn(48, 64), keep="statistics")
    assert found["mask-without-effect"].severity == "warning"


def test_an_open_mask_of_a_fused_attention():
    class Fused(Rows):
        def forward(self, x):
            x = self.enter(x.reshape(-1, 1, 8, 8))
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.change(FUTURE))

    assert "mask-without-effect" in found_in(Fused(lambda future: future | ~future), torch.randn(8, 64))
    assert "mask-without-effect" not in found_in(Fused(lambda future: ~future), torch.randn(8, 64))


def test_a_mask_after_the_softmax_may_be_of_zeros():
    class After(Rows):
        def forward(self, x):
            x = self.enter(x.reshape(-1, 8, 8))
            return ((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) * ~FUTURE) @ self.v(x)

    assert "mask-without-effect" not in found_in(After(), torch.randn(8, 64))


def test_the_operand_of_masked_fill_goes_on():
    def change(scores):
        scores.masked_fill(FUTURE, -math.inf)
        return scores

    finding = found_in(Rows(change), torch.randn(8, 64))["mask-without-effect"]
    assert "is not used" in finding.sentence
    assert finding.place.function == "change"


def test_uniform_attention_lasts_before_it_is_a_warning():
    model = Rows()
    for projection in (model.q, model.k):
        for parameter in projection.parameters():
            nn.init.zeros_(parameter)
    assert found_in(model, torch.randn(48, 64), keep="statistics")["uniform-attention"].severity == "note"
    assert watched(model, 6)["uniform-attention"].severity == "note"
    assert watched(model, 51, every=10)["uniform-attention"].severity == "warning"


def test_queries_that_begin_at_zero_soon_differ():
    model = Rows()
    nn.init.zeros_(model.q.weight)
    nn.init.zeros_(model.q.bias)
    assert "uniform-attention" in found_in(model, torch.randn(8, 64))
    found = watched(model, 51, every=10, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))
    assert found["uniform-attention"].severity == "note"


def test_one_token_that_gets_all_attention_later_is_a_note():
    model = Rows()
    found = watched(model, 52, lambda step: with_a_large_key(model) if step == 2 else None, every=4)
    assert found["one-token-attention"].severity == "note"


# -- padding ----------------------------------------------------------------------------------------------------------


def ids(begins=()):
    found = torch.randint(3, 40, (6, 12))
    found[torch.arange(12) >= torch.tensor([[12], [5], [7], [9], [11], [4]])] = 0
    found[:, : len(begins)] = torch.tensor(begins, dtype=torch.long)
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.1])  # with it PyTorch computes the weights as values
@pytest.mark.parametrize("padding", [0, None])
def test_padding_is_hidden_or_not(padding, dropout):
    right, none = (Reader(padding, hides, dropout) for hides in (lambda padded: padded, lambda padded: None))
    assert "padding-attended" not in found_in(right, ids(), keep="statistics")
    assert "24 of 72" in found_in(none, ids(), keep="statistics")["padding-attended"].evidence[-1]


def test_the_padding_of_large_batches_is_read_from_the_masks():
    large = ids().repeat(28, 1)
    found = found_in(Reader(0, lambda padded: ~padded, 0.1), large, keep="statistics")
    assert found["padding-attended"].evidence[0].startswith("100 % of the places")
    assert "padding-attended" not in found_in(Reader(0, lambda padded: padded, 0.1), large, keep="statistics")


def test_a_causal_mask_hides_padding_at_the_end_from_real_tokens():
    class Causal(Reader):
        def forward(self, ids):
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            return self.layer(self.embed(ids), mask, is_causal=True)

    assert "padding-attended" not in found_in(Causal(0), ids())


@pytest.mark.parametrize("tokens", [torch.randint(3, 40, (6, 12)), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])])
def test_batches_without_padding(tokens):
    assert "padding-attended" not in found_in(Reader(None), tokens)


def test_decoders_may_begin_with_the_token_of_padding():
    started = ids([0])
    started[:, 1:][started[:, 1:] == 0] = 1
    assert "padding-attended" not in found_in(Reader(0), started)


def test_targets_of_padding():
    x = ids()
    given, wanted = x[:, :-1], x[:, 1:]
    each = lambda output, **options: F.cross_entropy(output.flatten(0, 1), wanted.flatten(), **options)  # noqa: E731
    ignored = wanted.masked_fill(wanted == 0, -100)
    model = Tagger(None)
    healthy = [
        lambda output: each(output, ignore_index=0),
        lambda output: each(output, weight=(torch.arange(40) > 0).float()),
        lambda output: (each(output, reduction="none") * (wanted != 0).flatten()).sum() / 48,
        lambda output: F.cross_entropy(output.flatten(0, 1), ignored.flatten()),
    ]
    for loss in healthy:
        assert "padding-in-loss" not in found_in(model, given, loss)
    assert found_in(model, given, each)["padding-in-loss"].advice == "Pass ignore_index=0 to the loss."


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_output_projection_of_an_attention_before_a_head_is_meant_so(need_weights):
    attention, head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def step():
        x = torch.randn(8, 5, 16)
        head(attention(x, x, x, need_weights=need_weights)[0].mean(1)).square().mean().backward()

    with chainrule.record() as recording:
        step()
    assert "no-activation" not in {each.id for each in recording.findings()}
