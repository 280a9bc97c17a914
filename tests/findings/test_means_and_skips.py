"""Losses that are averaged too soon, skip connections, integers, states and clippings: each kind and its neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import watched
from tests.bed.loops.shared import batches, mlp, train
from tests.findings.test_kinds import found_in, trained

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


X, Y, CLASSES = torch.randn(16, 6), torch.randn(16, 3), torch.randint(3, (16,))


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def of(loss, model=None):
    """The findings of a step of a network whose loss is a function of its predictions."""
    model = model or network()
    return trained(model, lambda: loss(model(X)))


# -- means -------------------------------------------------------------------------------------------------------------

MASK = (torch.arange(16) % 3 > 0).float()


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: (F.cross_entropy(out, CLASSES) * MASK).sum() / MASK.sum(),
        lambda out: (0.5 * (out - Y).square().mean() * MASK[:, None]).mean(),
        lambda out: (F.mse_loss(out, Y) * MASK[:, None].expand(16, 3)).mean(),
    ],
)
def test_a_mask_that_multiplies_a_mean(loss):
    assert "averaged-first" in of(loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: (F.cross_entropy(out, CLASSES, reduction="none") * MASK).sum() / MASK.sum(),
        lambda out: ((out - Y).square() * MASK[:, None]).mean(),
        lambda out: (F.mse_loss(out, Y) * torch.tensor([0.3, 0.7])).sum(),  # weights of tasks, not of samples
        lambda out: F.mse_loss(out, Y) * MASK.mean(),
    ],
)
def test_what_weighs_samples_or_one_number_is_no_lost_weight(loss):
    assert "averaged-first" not in of(loss)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda out: (out.mean() - Y.mean()) ** 2, True),
        (lambda out: F.mse_loss(out.mean(), Y.mean()), True),
        (lambda out: (out - Y).square().mean(), False),
        (lambda out: (out.mean(0) - Y.mean(0)).square().mean(), False),  # moments of two distributions
        (lambda out: (out - Y).square().mean() + (out.mean() - Y.mean()) ** 2, False),  # beside the samples
        (lambda out: (out.mean() - 0.5) ** 2, False),
        (lambda out: (out.mean() - Y[:3].mean()) ** 2, False),  # other samples
    ],
)
def test_means_that_are_compared(loss, expected):
    titles = [each.title for each in of(loss).values()]
    assert ("Means are compared, not samples" in titles) is expected


@pytest.mark.parametrize(("reduction", "expected"), [("mean", True), ("none", False)])
def test_a_focal_loss_of_a_mean(reduction, expected):
    def focal(out):
        loss = F.cross_entropy(out, CLASSES, reduction=reduction)
        return (0.25 * (1 - torch.exp(-loss)) ** 2 * loss).mean()

    found = of(focal)
    assert ("averaged-first" in found) is expected
    if expected:
        assert found["averaged-first"].sentence == (
            "loss is one mean, and is weighed by its own exponential, as a focal loss weighs the loss of each sample."
        )


def test_a_mean_that_is_divided_by_its_samples():
    found = of(lambda out: F.mse_loss(out, Y) / len(X))["divided-twice"]
    assert found.sentence.endswith("is the mean over 16 samples, and is divided by 16 again.")
    assert found.severity == "note"


@pytest.mark.parametrize(("optimizer", "severity"), [(torch.optim.SGD, "warning"), (torch.optim.Adam, "note")])
def test_a_mean_divided_by_its_samples_slows_what_does_not_divide_by_the_size_of_gradients(optimizer, severity):
    model = mlp(64, 16, 10)
    script = train(
        model, batches(), optimizer(model.parameters(), lr=0.05), lambda out, y: F.cross_entropy(out, y) / len(y)
    )
    found = [each for each in watched(lambda: script, 6).findings if each.id == "divided-twice"]
    assert [each.severity for each in found] == [severity]


@pytest.mark.parametrize("loss", [lambda out: F.mse_loss(out, Y, reduction="sum") / len(X),
                                  lambda out: F.mse_loss(out, Y) / 4])  # fmt: skip
def test_a_sum_that_is_divided_and_a_mean_that_is_divided_by_another_number(loss):
    assert "divided-twice" not in of(loss)


def test_a_mean_that_is_divided_by_as_many_micro_batches():
    model = network()

    def step():
        for _ in range(16):
            (F.mse_loss(model(X), Y) / 16).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert "divided-twice" not in found_in(step, model=model)


# -- skip connections --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block, right or wrong."""

    def __init__(self, kind):
        super().__init__()
        self.kind, place = kind, kind in ("overwritten", "before")
        self.norm = nn.LayerNorm(6)
        self.branch = nn.Sequential(nn.ReLU(inplace=place), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))

    def forward(self, x):
        if self.kind == "itself":
            x = self.branch(x)
            x += x
            return x
        return self.branch(self.norm(x) if self.kind == "before" else x) + x


@pytest.mark.parametrize("kind", ["itself", "overwritten", "before", "right"])
def test_what_a_skip_connection_adds(kind):
    model = nn.Sequential(nn.Linear(6, 6), Block(kind), nn.Linear(6, 3))
    found = of(lambda out: F.mse_loss(out, Y), model)
    assert ("added-to-itself" in found) is (kind == "itself")
    assert ("skip-overwritten" in found) is (kind == "overwritten")
    if kind == "overwritten":
        assert found["skip-overwritten"].sentence == (
            "1.branch.0 overwrites linear@1, which is added to the result of 1.branch afterwards."
        )


class Gated(nn.Module):
    """A block whose branch is nn.Identity, as where layers were pruned."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Identity()

    def forward(self, x):
        return x + self.branch(x)


def test_a_branch_that_is_an_identity_is_meant():
    found = of(lambda out: F.mse_loss(out, Y), nn.Sequential(nn.Linear(6, 6), Gated(), nn.Linear(6, 3)))
    assert "added-to-itself" not in found


def test_activations_in_place_between_layers_overwrite_no_skip():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)))
    head = nn.Linear(6, 3)

    def loss():
        hidden = model[:2](X)
        return F.mse_loss(head(model[2](hidden) + hidden), Y)

    assert "skip-overwritten" not in trained(nn.ModuleList([model, head]), loss)


# -- integers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["difference", "conversion", "less"])
def test_bytes_below_0(first):
    model, pixels = network(), torch.randint(0, 255, (16, 6), dtype=torch.uint8)

    def loss():
        x = pixels.float() - 128 if first == "conversion" else (pixels - 128 if first == "difference" else 255 - pixels)
        return F.mse_loss(model(x.float() / 128), Y)

    assert ("bytes-wrap" in trained(model, loss)) is (first == "difference")


@pytest.mark.parametrize(("mode", "expected"), [("bilinear", True), ("bicubic", True), ("nearest", False)])
def test_classes_that_are_interpolated(mode, expected):
    model, labels, x = nn.Conv2d(1, 4, 3, padding=1), torch.randint(4, (2, 8, 8)), torch.randn(2, 1, 4, 4)

    def loss():
        small = F.interpolate(labels[:, None].float(), size=(4, 4), mode=mode)[:, 0].long().clamp(0, 3)
        return F.cross_entropy(model(x), small)

    assert ("classes-blended" in trained(model, loss)) is expected


@pytest.mark.parametrize("rows", [slice(None), torch.arange(16)])
def test_columns_that_are_set_in_every_row(rows):
    model = network()

    def loss():
        target = torch.zeros(16, 3)
        target[rows, CLASSES] = 1
        return F.binary_cross_entropy_with_logits(model(X), target)

    assert ("labels-of-all" in trained(model, loss)) is isinstance(rows, slice)


# -- states, cosines, clippings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.LSTMCell(6, 6), nn.LSTM(6, 6)])
@pytest.mark.parametrize("swapped", [True, False])
def test_the_states_of_an_lstm_are_swapped(layer, swapped):
    head = nn.Linear(6, 3)

    def loss():
        state = None
        for _ in range(3):
            if isinstance(layer, nn.LSTM):
                _, state = layer(X[None], state)
            else:
                state = layer(X, state)
            state = state[::-1] if swapped else state
        return F.mse_loss(head(state[0].view(16, 6)), Y)

    assert ("states-swapped" in trained(nn.ModuleList([layer, head]), loss)) is swapped


@pytest.mark.parametrize(("options", "expected"), [({}, True), ({"dim": -1}, False), ({"dim": 1}, False)])
def test_a_cosine_without_an_axis(options, expected):
    model, tokens, target = nn.Linear(6, 5), torch.randn(4, 7, 6), torch.randn(4, 7, 5)
    found = trained(model, lambda: 1 - F.cosine_similarity(model(tokens), target, **options).mean())
    assert ("cosine-axis" in found) is expected


@pytest.mark.parametrize("second", ["same", "other", "none"])
def test_gradients_that_are_clipped_twice(second):
    model = network()

    def step():
        F.mse_loss(model(X), Y).backward()
        nn.utils.clip_grad_norm_(model[0].parameters(), 0.1)
        if second != "none":
            nn.utils.clip_grad_norm_(model[0 if second == "same" else 2].parameters(), 0.1)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    found = found_in(step, model=model)
    assert ("clipping-idle" in found) is (second == "same")
    if second == "same":
        assert found["clipping-idle"].sentence == (
            "clip_grad_norm_ clips the gradient of 0.weight a second time, and that of 2.weight, 2.bias not at all."
        )


@pytest.mark.parametrize("how", ["copy", "in place", "assigned", "never reached"])
def test_a_gradient_whose_limited_copy_is_dropped(how):
    model = network()

    def step():
        (50 * F.mse_loss(model(X), Y)).backward()
        for each in model.parameters():
            if how == "copy":
                torch.clamp(each.grad, -1, 1)
            elif how == "in place":
                each.grad.clamp_(-1, 1)
            elif how == "assigned":
                each.grad = torch.clamp(each.grad, -1, 1)
            else:
                torch.clamp(each.grad, -1000, 1000)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert ("clipping-idle" in found_in(step, model=model)) is (how == "copy")


def test_boxes_without_an_overlap_get_no_gradient():
    model, boxes = nn.Linear(6, 2), torch.rand(16, 2) + torch.tensor([50.0, 60.0])

    def loss():
        start, end = model(X).unbind(1)
        both = (torch.min(end, boxes[:, 1]) - torch.max(start, boxes[:, 0])).clamp(min=0)
        either = (end - start).clamp(min=0) + boxes[:, 1] - boxes[:, 0]
        return (1 - both / (either - both)).mean()

    found = trained(model, loss)["zero-gradient"]
    assert "div stops it" in found.sentence
    assert any("the dividend, both" in each for each in found.evidence)


@pytest.mark.parametrize("clears", [False, True])
def test_a_closure_that_clears_nothing(clears):
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure():
        if clears:
            optimizer.zero_grad()
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        return loss

    found = found_in(lambda: optimizer.step(closure), model=model)
    assert ("accumulated-gradient" in found) is not clears


@pytest.mark.parametrize(("shift", "expected"), [(1, True), (0, False)])
def test_a_window_that_ends_with_its_target(shift, expected):
    series, rnn, head = torch.randn(60), nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)
    windows = torch.tensor([series[at + shift : at + shift + 10].tolist() for at in range(20)])[:, :, None]
    targets = torch.tensor([[series[at + 10].item()] for at in range(20)])
    found = trained(nn.ModuleList([rnn, head]), lambda: F.mse_loss(head(rnn(windows)[0][:, -1]), targets))
    assert ("target-in-input" in found) is expected
