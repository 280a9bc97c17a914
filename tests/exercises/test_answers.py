"""`recording.check`: right answers are right, and the mistakes that students make are named, never wrongly.

The wrong answers are those of `wrong_answers`.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch

import chainrule
from chainrule.examples import worked_example
from tests.exercises.recorded import NETWORKS
from tests.exercises.wrong_answers import made, measured, rounded

EACH = 34  # random answers of each network


def test_a_mistake_of_each_kind_is_named() -> None:
    [score] = measured("tensors", 1, ("three_layers",)).values()
    assert score.wrongly == []
    assert score.named >= 0.9 * score.asked
    assert len(score.kinds) >= 12


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("tensors", 0.95), ("single", 0.92), ("two", 0.0)])
def test_nine_of_ten_mistakes_are_named_and_none_wrongly(kind: str, least: float) -> None:
    scores = measured(kind, 2).values()
    assert [each for score in scores for each in score.wrongly] == []
    asked = sum(score.asked for score in scores)
    assert asked >= 200
    assert sum(score.named for score in scores) >= least * asked
    assert len(set.union(*(score.kinds for score in scores))) >= 12


@pytest.mark.parametrize(
    "name", [each if each == "lstm" else pytest.param(each, marks=pytest.mark.slow) for each in NETWORKS]
)
def test_rounded_right_answers_are_right(name: str) -> None:
    recording, _, right, _ = made(name)
    for quantity, true in right.items():
        for digits in (3, 5, 17):
            told = recording.check(quantity, rounded(true, digits))
            assert told.right, f"{quantity} = {rounded(true, digits)}: {told}"


@pytest.mark.slow
def test_random_numbers_have_no_name() -> None:
    draw = random.Random(1)
    for name in NETWORKS:
        recording, _, right, _ = made(name)
        for _ in range(EACH):
            quantity = draw.choice(list(right))
            true = right[quantity]
            answer = torch.tensor([draw.gauss(0, float(true.abs().max())) for _ in range(true.numel())]).reshape(
                true.shape
            )
            told = recording.check(quantity, rounded(answer, 4 if true.numel() > 1 else 6))
            assert not told.right
            assert told.mistake is None, f"{quantity}: {told}"


# -- single answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording() -> chainrule.Recording:
    model, loss, optimizer = worked_example.build("sgd")
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording


@pytest.mark.parametrize("answer", [0.5747, "-0.5747", "-0.575", "-0.57", -0.57466, torch.tensor(-0.57466)])
def test_an_answer_has_the_digits_that_it_was_given_with(recording: chainrule.Recording, answer: Any) -> None:
    told = recording.check("dJ/dW2[0,1]", answer)  # -0.574657
    assert told.right == (answer != 0.5747)


@pytest.mark.parametrize("answer", ["-0.58", -0.5746, -1, 0, "-0.57467", torch.tensor(-0.5746), numpy.float32(-0.5)])
def test_what_does_not_round_to_it_is_wrong(recording: chainrule.Recording, answer: Any) -> None:
    assert not recording.check("dJ/dW2[0,1]", answer).right


def test_one_digit_is_not_enough(recording: chainrule.Recording) -> None:
    told = recording.check("J", "0.2")
    assert not told.right
    assert "too few digits" in told.sentence
    assert not recording.check("dJ/dZ1[0,1]", 0).right  # -0.0014


def test_elements_and_shapes(recording: chainrule.Recording) -> None:
    right = recording["W2"].grad
    assert right is not None
    assert recording.check("dJ/dW2", right).right
    assert recording.check("dJ/dW2", right.numpy()).right
    told = recording.check("dJ/dW2", right.t())
    assert told.mistake is not None
    assert told.mistake.name == "transposed"
    assert "(2, 3)" in told.sentence
    one = right.clone()
    one[1, 1] *= -1
    told = recording.check("dJ/dW2", one)
    assert told.elements.tolist() == [[True, True, True], [True, False, True]]
    assert told.sentence == "dJ/dW2 is not right: all is right but dJ/dW2[1,1], and there the sign is wrong."
    assert "its numbers are right" in recording.check("dJ/dW2", right.reshape(-1)).sentence
    assert recording.check("new b3", float(recording.parameters["linear3.bias"].after)).right  # type: ignore[arg-type]


def test_a_sentence_has_the_numbers(recording: chainrule.Recording) -> None:
    passed_on = recording["A2"].grad
    assert passed_on is not None
    told = recording.check("dJ/dZ2[0,0]", f"{passed_on[0, 0].item():.4g}")
    assert "Z2 = [[0, 8], [8, 10.1]]" in told.sentence
    above = recording["Z2"].grad
    assert above is not None
    assert "sum of the rows of dJ/dZ2" in recording.check("dJ/db2", above).sentence


def test_what_follows_from_an_earlier_wrong_answer(recording: chainrule.Recording) -> None:
    mine = torch.tensor([[0.5, -0.25], [0.125, 1.0]])
    data = recording["A1"].data
    assert data is not None
    told = recording.check("dJ/dW2", mine.t() @ data, earlier={"dJ/dZ2": mine})
    assert told.mistake is not None
    assert told.mistake.name == "follow-up"
    assert "your dJ/dZ2, which is not right" in told.sentence
    forward = recording.check("A1", [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]], earlier={"Z1": [[1, -1, 2], [-2, 3, -1]]})
    assert forward.mistake is not None
    assert forward.mistake.name == "follow-up"


def test_another_element_and_the_decimal_point(recording: chainrule.Recording) -> None:
    right = recording["W1"].grad
    assert right is not None
    told = recording.check("dJ/dW1[0,0]", f"{right[0, 1].item():.5g}")
    assert told.mistake is not None
    assert "this is dJ/dW1[0,1], and not dJ/dW1[0,0]" in told.sentence
    told = recording.check("dJ/dW2[0,1]", f"{10 * recording['W2'].grad[0, 1].item():.5g}")  # type: ignore[index]
    assert told.mistake is not None
    assert "the decimal point is one place too far right" in told.sentence


def test_a_number_that_fits_two_mistakes_names_both(recording: chainrule.Recording) -> None:
    told = recording.check("dJ/db2[0]", "-0.1277")  # W3[0,0] = 1/2 left out gives as much as the mean's 1/2 left out
    assert told.mistake is not None
    assert {"mean", "left out"} <= set(told.mistake.names)
    assert "; or " in told.sentence


def test_a_fraction(recording: chainrule.Recording) -> None:
    with chainrule.record() as third:
        x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        x.mean().backward()
    assert third.check("dJ/dx", ["1/3", "1/3", 0.333]).right
    assert not third.check("dJ/dx", ["1/3", "1/3", "1/4"]).right


@pytest.mark.parametrize(
    ("quantity", "said"), [("dJ/dW9", "'dJ/dW3'"), ("W", "'W3'"), ("new Z1", "new"), ("dK/dW2", "dJ/dW2")]
)
def test_the_nearest_names(recording: chainrule.Recording, quantity: str, said: str) -> None:
    with pytest.raises(chainrule.errors.MissingError, match=said):
        recording.check(quantity, 1.0)


def test_what_has_no_numbers_to_ask_for() -> None:
    model, z = torch.nn.Linear(200, 200), torch.randn(2, dtype=torch.cfloat, requires_grad=True)
    with chainrule.record(keep="statistics") as large:
        out = model(torch.randn(100, 200))
        (out.sum() + z.abs().sum() * float("nan")).backward()
    with pytest.raises(chainrule.errors.MissingError, match="statistics"):
        large.check("out", 1.0)
    with pytest.raises(chainrule.errors.MissingError, match="is complex"):
        large.check("dJ/dz", 1.0)
    assert large.check("J", "nan").right
    assert not large.check("J", 1.0).right


def test_an_index_outside(recording: chainrule.Recording) -> None:
    with pytest.raises(chainrule.errors.MissingError, match="out of range"):
        recording.check("dJ/dW2[2,0]", 1.0)


@pytest.mark.parametrize(
    "answer", ["abc", True, None, [[1.0], [1.0, 2.0]], "1/0", torch.tensor(1j), numpy.array(["1"])]
)
def test_what_is_no_number(recording: chainrule.Recording, answer: Any) -> None:
    with pytest.raises(chainrule.errors.RequestError):
        recording.check("J", answer)
