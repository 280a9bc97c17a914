"""What is set without an effect, and what a batch contains: the sentence of each kind, and what must stay quiet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.findings.test_kinds import found_in, trained

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def of(model, x, y, loss=F.mse_loss):
    return trained(model, lambda: loss(model(x), y))


def test_an_attribute_of_a_module_does_not_freeze_it():
    model = network()
    model[0].requires_grad = False
    found = of(model, torch.randn(8, 6), torch.randn(8, 3))["setting-without-effect"]
    assert found.sentence == "0 is not frozen: requires_grad = False is an attribute that nothing reads."
    assert found.evidence == ("2 of its parameters have a gradient: 0.weight, 0.bias.",)
    assert found.advice == "Call 0.requires_grad_(False)."


def test_an_attribute_of_a_module_that_is_frozen_is_its_own_affair():
    model = network()
    model[0].requires_grad_(False)
    model[0].requires_grad = False
    assert "setting-without-effect" not in of(model, torch.randn(8, 6), torch.randn(8, 3))


def test_an_attribute_of_an_optimizer_is_no_option():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.lr = 0.001
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    found = trained(model, lambda: F.mse_loss(model(x), y), optimizer)["setting-without-effect"]
    assert found.sentence == (
        "Adam has an attribute lr of 0.001 that it does not read: options are those of its parameter groups."
    )
    assert found.evidence == ("It uses lr = 0.01.",)


@pytest.mark.parametrize("kind", ["attribute", "group"])
def test_an_option_of_an_optimizer_of_ones_own_and_factors_of_groups_are_not_reported(kind):
    class Mine(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr=lr)
            self.lr = 2 * lr

    model, x, y = network(), torch.randn(8, 6), torch.randn(8, 3)
    groups = [{"params": model.parameters(), "lr_scale": 0.5, "layer": 3}]
    optimizer = Mine(model.parameters(), 0.1) if kind == "attribute" else torch.optim.SGD(groups, lr=0.1)
    assert "setting-without-effect" not in trained(model, lambda: F.mse_loss(model(x), y), optimizer)


def test_a_misspelt_option_of_a_group():
    model, x, y = network(), torch.randn(8, 6), torch.randn(8, 3)
    groups = [{"params": model.parameters(), "learning_rate": 0.001}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    found = trained(model, lambda: F.mse_loss(model(x), y), optimizer)["setting-without-effect"]
    assert found.sentence == "SGD does not know the option learning_rate of the group of 0.weight."
    assert found.evidence == ("It was given learning_rate = 0.001, and uses lr = 0.1.",)


def test_one_layer_many_times_is_said_to_be_one():
    layers = 2 * [nn.Linear(6, 6), nn.ReLU()]
    found = of(nn.Sequential(*layers, nn.Linear(6, 3)), torch.randn(8, 6), torch.randn(8, 3))["shared-layers"]
    assert found.sentence == "0, 2 are one Linear, and not 2."
    assert found.evidence == ("They share 2 parameters: 0.weight, 0.bias.",)


def test_a_sample_many_times_and_a_target_among_the_features():
    x, y = torch.randn(1, 6).expand(8, 6).clone(), torch.ones(8, 3)
    found = of(network(), x, y)
    assert found["samples-alike"].sentence == "All 8 samples of the input x are the same, and so are their targets."
    x, model = torch.randn(16, 6), nn.Sequential(nn.Linear(6, 1))
    found = of(model, x, x[:, 2:3].clone())["target-in-input"]
    assert found.sentence.startswith("Feature 2 of the input x is the target ")
    assert found.evidence[0] == "All 16 samples agree, with 16 different targets."


def test_samples_that_differ_a_little_and_a_target_that_is_near_are_quiet():
    x = torch.randn(1, 6).expand(16, 6).clone()
    x[3, 2] += 1e-3
    near = x[:, 1:2] + 0.1 * torch.randn(16, 1)
    found = of(nn.Sequential(nn.Linear(6, 1)), torch.cat([x[:, 1:], near], 1), near + 0.01 * torch.randn(16, 1))
    assert not {"samples-alike", "target-in-input"} & set(found)


def test_scores_that_a_relu_cuts_off():
    model, x = nn.Sequential(nn.Linear(6, 3), nn.ReLU()), torch.randn(16, 6)
    found = of(model, x, torch.randint(3, (16,)), F.cross_entropy)["relu-on-scores"]
    assert found.sentence == "The scores relu are the output of a ReLU (relu): none is below 0."
    hidden = of(nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)), x, torch.randint(3, (16,)), F.cross_entropy)
    assert "relu-on-scores" not in hidden


def test_a_loss_that_is_not_scaled_before_it_is_unscaled():
    model, x, y = network(), torch.randn(8, 6), torch.randn(8, 3)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=256.0)

    def step(scales):
        def run():
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            scaled = scaler.scale(loss)
            (scaled if scales else loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return run

    found = found_in(step(False), model=model)["unscaled-loss"]
    assert found.sentence.endswith(" was not scaled, and a GradScaler divides its gradients by 256.")
    assert "unscaled-loss" not in found_in(step(True), model=model)


def test_where_clipping_stands():
    model, x, y = network(), torch.randn(8, 6), torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def early():
        loss = F.mse_loss(model(x), y)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        loss.backward()
        optimizer.step()

    def right():
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    found = found_in(early, model=model)["clipping-misplaced"]
    assert found.sentence == "clip_grad_norm_ clips nothing that the optimizer uses: it runs before backward()."
    assert found.place.function == "early"
    assert "clipping-misplaced" not in found_in(right, model=model)


def test_classes_and_their_weights():
    model, x, y = network(), torch.randn(400, 6), (torch.arange(400) % 20 == 0).long()
    wrong, right = torch.tensor([0.95, 0.05, 1.0]), torch.tensor([0.5, 10.0, 1.0])
    found = of(model, x, y, nn.CrossEntropyLoss(weight=wrong))["class-weights"]
    assert found.sentence == "The frequent class has the larger weight: class 0 weighs 0.95, and class 1 0.05."
    assert "class-weights" not in of(model, x, y, nn.CrossEntropyLoss(weight=right))
