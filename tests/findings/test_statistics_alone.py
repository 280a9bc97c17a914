"""What is found in a step of which only statistics were kept: the tensors here are too large to be kept by the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import findings

pytestmark = pytest.mark.trains
WIDTH, SAMPLES = 160, 64  # 40 KiB of float32 in the smallest of the tensors that count


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def found_in(model, loss=None, rate=0.01, x=None):
    x = torch.randn(SAMPLES, WIDTH) if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with chainrule.record({"model": model, "x": x}, keep="statistics") as recording:
        optimizer.zero_grad()
        output = model(x)
        (output.square().mean() if loss is None else loss(output)).backward()
        optimizer.step()
    assert any(value.data is None for value in recording.graph.values)
    return {finding.id: finding for finding in recording.findings()}


def layers(count, act=nn.ReLU, std=None):
    model = nn.Sequential(*(each for _ in range(count) for each in (nn.Linear(WIDTH, WIDTH), act())))
    for layer in model:
        if std is not None and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
    return model.append(nn.Linear(WIDTH, WIDTH))


def test_a_healthy_step_has_nothing():
    assert [finding for finding in found_in(layers(3)).values() if finding.severity != "note"] == []


def test_a_saturated_tanh():
    finding = found_in(layers(2, nn.Tanh, std=5.0))["saturated"]
    assert finding.evidence[0].endswith("on average, and at most 1.")


def test_a_layer_that_is_off():
    model = layers(2)
    nn.init.constant_(model[2].bias, -50.0)
    finding = found_in(model)["unit-off"]
    assert (finding.severity, finding.size, len(finding.rows)) == ("warning", WIDTH, WIDTH)
    assert finding.evidence == (f"All {SAMPLES * WIDTH} elements of A2 are 0.",)


def test_gradients_through_depth():
    assert "vanishing-gradient" in found_in(layers(8, nn.Sigmoid))
    assert "exploding-gradient" in found_in(layers(8, nn.ReLU, std=1.0), rate=1e-30)


def test_where_a_number_first_is_not_finite():
    finding = found_in(layers(1), loss=lambda output: output.log().mean())["non-finite-forward"]
    assert finding.sentence == "log turns finite numbers into non-finite ones; it is the first to do so."
    assert f" of {SAMPLES * WIDTH} elements of " in finding.evidence[0]


def test_an_input_that_is_not_normalised():
    finding = found_in(layers(2), x=100 + 50 * torch.randn(SAMPLES, WIDTH))["input-not-normalised"]
    assert "standard deviation is" in finding.sentence


def test_a_rate_of_zero_and_one_that_is_too_large():
    assert "its learning rate is 0." in found_in(layers(2), rate=0.0)["stuck-update"].sentence
    assert found_in(layers(2), rate=1e6)["update-too-large"].severity == "note"


def test_losses_are_known_by_their_operations():
    wanted = torch.randint(WIDTH, (SAMPLES,))
    found = found_in(layers(1).append(nn.Softmax(1)), loss=lambda output: F.cross_entropy(output, wanted))
    assert "softmax-before-cross-entropy" in found


def test_a_gradient_that_was_left_over():
    model = nn.Linear(4, 3)
    for _ in range(2):
        with chainrule.record({"model": model}) as recording:
            model(torch.randn(8, 4)).square().mean().backward()
    found = findings(recording.graph, None, recording.notation)
    assert [(each.id, each.where, each.severity) for each in found] == [
        ("accumulated-gradient", "weight", "warning"), ("accumulated-gradient", "bias", "warning"),
    ]  # fmt: skip


def test_a_gradient_that_is_not_finite():
    finding = found_in(layers(1), loss=lambda output: (output - output.detach()).square().sqrt().mean())
    assert "sqrt" in finding["non-finite-backward"].sentence
    assert "non-finite-forward" not in finding


def test_a_small_result_of_what_was_not_kept_is_not_the_origin():
    found = found_in(layers(2), loss=lambda output: output.log().square().mean())
    assert found["non-finite-forward"].text == (
        "log turns finite numbers into non-finite ones; it is the first to do so.",
    )
    assert "non-finite-backward" not in found
