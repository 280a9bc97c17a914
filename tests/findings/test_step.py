import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainrule import record
from chainrule.diagnostics import CHECKS
from chainrule.examples import worked_example

pytestmark = pytest.mark.trains

OFF_HERE = "Units are off for every sample of this batch"


def diagnose(step, namespace=None):
    with record(namespace or {}) as recording:
        step()
    found = recording.findings()
    for finding in found:
        assert finding.title in (CHECKS[finding.id].title, "A parameter is not used", OFF_HERE)
        assert finding.evidence
        assert finding.advice.endswith(".")
        assert finding.id in CHECKS
        assert str(finding)
    return found


def only(found, name):
    """The one finding with this id."""
    (match,) = [finding for finding in found if finding.id == name]
    return match


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def worked():
    model, loss, optimizer = worked_example.build()
    return diagnose(lambda: worked_example.train_step(model, loss, optimizer), vars(worked_example))


# -- the worked example, and a healthy step ----------------------------------------------------------------------------


def test_worked_example_has_its_three_findings(worked):
    assert [finding.id for finding in worked] == ["unit-off", "sigmoid-before-bce", "at-kink"]


def test_unit_off_names_unit_layer_and_numbers(worked):
    finding = only(worked, "unit-off")
    assert finding.text[0].startswith("Unit 2 of layer 1 (linear1) is off for every sample")
    assert finding.evidence == ("Z1[:,2] is -7.8, -16: the slope of A1 is 0 in both samples.",)
    assert (finding.where, finding.severity) == ("A1", "warning")


def test_kink_names_the_element_and_the_choice(worked):
    finding = only(worked, "at-kink")
    assert finding.evidence == ("Z2[0,0] = 0",)
    assert "PyTorch takes 0" in str(finding)
    assert (finding.where, finding.severity) == ("Z2", "note")


def test_logits_have_no_sigmoid_to_complain_of():
    model, loss, optimizer = worked_example.build(logits=True)
    found = diagnose(lambda: worked_example.train_step(model, loss, optimizer), vars(worked_example))
    assert [finding.id for finding in found] == ["unit-off", "at-kink"]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.dropout, self.second = nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x):
        return self.second(self.dropout(F.relu(self.first(x))))


@pytest.mark.parametrize("to_none", [True, False])
def test_healthy_training_has_nothing_above_a_note(to_none):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))

    def step():
        optimizer.zero_grad(set_to_none=to_none)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    step()
    assert [finding for finding in diagnose(step) if finding.severity != "note"] == []


def test_accumulation_inside_one_step_is_no_finding():
    w = torch.ones(2, requires_grad=True)

    def step():
        (w * 2).sum().backward()
        (w * 3).sum().backward()

    assert diagnose(step) == ()


def test_clearing_between_two_backward_passes_is_no_finding():
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def step():
        for scale in (2, 3):
            optimizer.zero_grad()
            (w * scale).sum().backward()
            optimizer.step()

    assert diagnose(step) == ()


# -- units -------------------------------------------------------------------------------------------------------------


def test_convolution_counts_units_by_channel():
    conv = nn.Conv2d(1, 3, 3)
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
    x = torch.rand(2, 1, 5, 5)
    finding = only(diagnose(lambda: F.relu(conv(x)).mean().backward()), "unit-off")
    assert finding.text[0].startswith("Unit 1 of")


def test_few_units_of_many_are_a_note():
    layer, x = nn.Linear(2, 100), torch.rand(4, 2)
    with torch.no_grad():
        layer.bias.fill_(9)
        layer.bias[7] = -9
    finding = only(diagnose(lambda: F.relu(layer(x)).sum().backward()), "unit-off")
    assert finding.severity == "note"
    assert finding.text[0].startswith("Unit 7 of")


@pytest.mark.parametrize(
    ("bias", "others", "rows", "severity", "title"),
    [
        (-2.0, 0.0, 32, "note", OFF_HERE),  # 0 is two deviations away
        (-9.0, 0.0, 32, "warning", "A unit is off for every sample"),
        (-9.0, 9.0, 32, "note", OFF_HERE),  # rows are alike for the other half
        (-2.0, 0.0, 6, "warning", "A unit is off for every sample"),  # so few rows are mostly all there are
    ],
)
def test_units_that_rows_to_come_may_turn_on_are_a_note(bias, others, rows, severity, title):
    layer, x = nn.Linear(1, 8), torch.linspace(-1.7, 1.7, rows)[:, None]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias[:4], layer.bias[4:] = bias, others
    finding = only(diagnose(lambda: F.relu(layer(x)).mean().backward()), "unit-off")
    assert (finding.severity, finding.title, finding.rows) == (severity, title, (0, 1, 2, 3))


def test_one_sample_says_nothing_about_units():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.bias.fill_(-9)
    x = torch.rand(1, 2)
    assert diagnose(lambda: F.relu(layer(x)).sum().backward()) == ()


# -- losses ------------------------------------------------------------------------------------------------------------


def test_saturated_probabilities_are_counted():
    logits = torch.tensor([40.0, 0.5], requires_grad=True)
    y = torch.tensor([1.0, 0.0])
    finding = only(diagnose(lambda: F.binary_cross_entropy(torch.sigmoid(logits), y).backward()), "sigmoid-before-bce")
    assert any("1 of 2 probabilities" in each for each in finding.evidence)


def test_softmax_before_cross_entropy():
    logits, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    found = diagnose(lambda: F.cross_entropy(logits.softmax(1), y).backward(), {"logits": logits})
    finding = only(found, "softmax-before-cross-entropy")
    assert finding.severity == "warning"
    assert finding.evidence[0].startswith("With 3 classes the loss of a sample can't fall below 0.5514")
    assert finding.advice.startswith("Pass logits to cross_entropy")


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, lambda output, y: ((output - y) ** 2).mean()])
def test_column_against_vector_in_a_loss(loss):
    layer, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)

    def step():
        output = layer(x)
        loss(output, y).backward()

    finding = only(diagnose(step, {"y": y}), "broadcast-in-loss")
    assert "(5, 1)" in finding.text[0]
    assert "25 differences instead of 5" in finding.evidence[0]


def test_same_shapes_in_a_loss_are_fine():
    layer, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
    assert diagnose(lambda: F.mse_loss(layer(x).squeeze(1), y).backward()) == ()


# -- gradients of parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "severity", "words"),
    [
        (lambda model, x: model.first(x).sum(), "note", "did not use it"),  # its task may come in another step
        (lambda model, x: model.first(x).sum() + model.second(x).detach().sum(), "warning", "passes `detach`"),
        (lambda model, x: (model.second(x), model.first(x).sum())[1], "warning", "nothing made from it is on the way"),
    ],
)
def test_parameter_without_gradient(forward, severity, words):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return forward(self, x)

    model, x = Model(), torch.randn(3, 2)
    finding = only(diagnose(lambda: model(x).backward()), "no-gradient")
    assert (finding.where, finding.severity) == ("second.weight", severity)
    assert words in finding.text[0]


def test_frozen_parameter_is_a_note():
    model, x = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)), torch.randn(3, 2)
    model[0].weight.requires_grad_(False)
    finding = only(diagnose(lambda: model(x).sum().backward()), "no-gradient")
    assert (finding.where, finding.severity) == ("0.weight", "note")
    assert "it is frozen" in finding.text[0]


def test_no_backward_is_one_note():
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    finding = only(diagnose(lambda: model(x)), "no-gradient")
    assert "no backward pass ran" in finding.text[0]
    assert "weight" in finding.evidence[0]


def test_gradient_that_was_there_before():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    (w * 3).sum().backward()
    finding = only(diagnose(lambda: (w * 4).sum().backward(), {"w": w}), "accumulated-gradient")
    assert finding.evidence == ("Its norm was 4.2426; this step sent 5.6569, which left 9.8995 in `.grad`.",)


def clipped(clip):
    layer, x = nn.Linear(3, 2), 10 * torch.randn(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        clip(layer)
        optimizer.step()

    return only(diagnose(step), "gradient-changed")


def test_clipping_by_norm_is_measured():
    finding = clipped(lambda layer: nn.utils.clip_grad_norm_(layer.parameters(), 1.0))
    assert finding.severity == "note"
    assert "clip_grad_norm_" in str(finding)
    assert "and is 1." in finding.evidence[0]
    assert finding.evidence[1].startswith("Every element was multiplied by 0.0")


def test_clipping_by_value_is_measured():
    finding = clipped(lambda layer: nn.utils.clip_grad_value_(layer.parameters(), 0.5))
    assert "clip_grad_value_" in str(finding)
    assert finding.evidence[1].endswith("and is 0.5.")


def test_clearing_after_backward_is_a_warning():
    finding = clipped(lambda layer: layer.zero_grad())
    assert finding.severity == "warning"
    assert "cleared" in str(finding)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def test_logarithm_of_a_negative_number():
    w = torch.tensor([2.0, -1.2], requires_grad=True)

    def step():
        h = w * 1
        bad = h.log()
        (bad * 2).sum().backward()

    finding = only(diagnose(step, {"w": w}), "non-finite-forward")
    assert (finding.where, finding.severity) == ("bad", "error")
    assert finding.evidence[:2] == ("bad[1] = nan from h[1] = -1.2.", "log(-1.2) is nan.")


def test_square_root_at_zero_goes_wrong_backwards():
    w = torch.tensor([4.0, 0.0], requires_grad=True)

    def step():
        root = w.sqrt()
        root.sum().backward()

    found = diagnose(step, {"w": w})
    assert [finding.id for finding in found if finding.severity == "error"] == ["non-finite-backward"]
    finding = only(found, "non-finite-backward")
    assert finding.evidence == ("dJ/dw[1] = inf, where w[1] = 0 and dJ/droot[1] = 1.",)


def test_data_with_nan_is_named():
    w, x = torch.ones(2, requires_grad=True), torch.tensor([1.0, float("nan")])
    finding = only(diagnose(lambda: (w * x).sum().backward(), {"w": w, "x": x}), "non-finite-forward")
    assert (finding.where, finding.evidence[0]) == ("x", "1 of 2 elements: x[1].")


def test_mask_of_infinities_is_no_finding():
    q, k = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    later = torch.ones(3, 3).triu(1).bool()

    def step():
        scores = (q @ k.T).masked_fill(later, float("-inf"))
        scores.softmax(1).square().sum().backward()

    assert diagnose(step) == ()
