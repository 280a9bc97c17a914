import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainrule import record
from chainrule.errors import MissingError, RequestError
from chainrule.examples import worked_example


class Asked:
    """A recorded step with the question put to it."""

    def __init__(self, step, namespace=None):
        with record(namespace or {}) as recording:
            step()
        self.recording, self.graph = recording, recording.graph

    def why(self, name, index):
        return self.recording.why(name, index)

    def every_element(self):
        """Each element of each gradient, with its answer."""
        for value in self.graph.values:
            if value.grad is not None:
                for index in itertools.product(*map(range, value.shape)):
                    yield value, index, self.why(value.name, index)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def worked():
    model, loss, optimizer = worked_example.build()
    return Asked(lambda: worked_example.train_step(model, loss, optimizer), vars(worked_example))


def assert_adds_up(asked):
    answers = list(asked.every_element())
    assert answers
    for value, index, answer in answers:
        scale = value.grad.abs().max().item() + 1e-12
        close = pytest.approx(value.grad[index].item(), rel=1e-5, abs=1e-5 * scale)
        assert answer.total == close, str(answer)
        assert answer.value == value.grad[index].item()
        assert sum(use.subtotal for use in answer.uses) == pytest.approx(answer.total) or not answer.uses
        assert (
            sum(term.value for term in answer.terms) == pytest.approx(answer.total, rel=1e-5, abs=1e-7)
            or answer.sentence
        )
        assert not answer.sentence or not answer.terms
        for term in answer.terms:
            assert len(term.factors) == 2, str(answer)
            assert term.factors[0].value * term.factors[1].value == pytest.approx(term.value)
            assert all(factor.reason for factor in term.factors if factor.value == 0), str(answer)
        assert answer.document().anchor.startswith("why-")


# -- the worked example ------------------------------------------------------------------------------------------------


def test_worked_example_adds_up(worked):
    assert_adds_up(worked)


def test_reads_as_by_hand(worked):
    assert str(worked.why("linear1.weight", (1, 0))) == (
        "dJ/dW1[1,0] = dJ/dZ1[0,1] * X[0,0] + dJ/dZ1[1,1] * X[1,0] = -0.0014 * 1 + -0.0600 * 3 = -0.1814"
    )


def test_first_cause_of_a_zero_is_the_relu_that_is_off(worked):
    answer = worked.why("linear1.weight", (2, 0))
    assert answer.total == 0
    assert [term.factors[0].reason for term in answer.terms] == [
        "ReLU is off: Z1[0,2] = -7.8 < 0",
        "ReLU is off: Z1[1,2] = -16 < 0",
    ]


def test_first_cause_of_a_zero_is_the_kink(worked):
    first = worked.why("linear2.weight", (0, 0)).terms[0]
    assert first.factors[0].name == "dJ/dZ2[0,0]"
    assert first.factors[0].reason.startswith("Z2[0,0] = 0 lies exactly at a kink: ReLU has a corner at 0")
    assert first.factors[0].reason.endswith("PyTorch takes 0")


def test_zero_operand_is_a_reason(worked):
    answer = worked.why("linear2.weight", (1, 2))
    assert [factor.reason for term in answer.terms for factor in term.factors] == [
        "",
        "A1[0,2] = 0: ReLU is off, Z1[0,2] = -7.8 < 0",
        "",
        "A1[1,2] = 0: ReLU is off, Z1[1,2] = -16 < 0",
    ]


def test_a_weight_that_was_initialised_in_the_recording_is_a_parameter_that_is_0():
    layer = nn.Linear(2, 1)
    with record() as recording:
        nn.init.zeros_(layer.weight)
        x = torch.ones(1, 2, requires_grad=True)
        layer(x).sum().backward()
    assert "the parameter is 0 there" in str(recording.why("x", (0, 0)))


def test_the_loss_of_each_sample_is_on_the_way(worked):
    assert str(worked.why("output", (0, 0))) == ("dJ/dA3[0,0] = dJ/dL[0,0] * dL[0,0]/dA3[0,0] = 0.5 * 1.1003 = 0.5501")


def explained(recording, name, index):
    """What the page says of one element of a value."""
    document = recording.document(pointing=True)
    row = next(row for row in document.rows if row.name == name)
    [found] = [s for s in document.sums if (s.of.row, s.of.role, s.of.index) == (row.index, "value", index)]
    return found


def test_a_forward_value_is_explained_by_what_was_put_in(worked):
    assert explained(worked.recording, "A3", (0, 0)).text == "A3[0,0] = σ(Z3[0,0]) = σ(-2.3) = 0.0911"
    cost = explained(worked.recording, "J", ())
    assert cost.text.startswith(
        "J = 1/2 * (L[0,0] + L[1,0]) = 1/2 * (0.0955 + 0.2949) = 0.1952; L[0,0] = -(Y[0,0] * ln("
    )
    off = explained(worked.recording, "Z3", (0, 0))
    assert [summand.reason for summand in off.summands] == ["A2[0,0] = 0: ReLU is off, Z2[0,0] = 0", "", ""]


def test_the_steps_of_a_network_are_explained_in_numbers():
    x = torch.tensor([[[[0.5, -1.0], [2.0, 0.25]]]])
    w = torch.tensor([[[[1.0, -0.5]]]], requires_grad=True)
    with record() as recording:
        z = F.conv2d(x, w)
        m = F.max_pool2d(z, (2, 1))
        p = torch.cat([z.flatten(), m.flatten()]).softmax(0)
        p[0].backward()
    texts = [explained(recording, name, index).text for name, index in (("z", (0, 0, 0, 0)), ("m", (0, 0, 0, 0)))]
    assert texts == [
        "z[0,0,0,0] = x[0,0,0,0] * w[0,0,0,0] + x[0,0,0,1] * w[0,0,0,1] = 0.5 * 1 - 1 * -0.5 = 1",
        "m[0,0,0,0] = max(z[0,0,0,0], z[0,0,1,0]) = max(1, 1.875) = 1.875",
    ]
    soft = explained(recording, "p", (0,)).text
    assert soft.endswith(" = exp(1) / (exp(1) + exp(1.875) + exp(1.875)) = 2.7183 / 15.7599 = 0.1725")


def test_a_value_without_a_formula_says_what_it_depends_on():
    w = torch.tensor([[2.0, 1.0], [0.0, 4.0]], requires_grad=True)
    with record() as recording:
        y = torch.linalg.inv(w)
        y.sum().backward()
    found = explained(recording, "y", (0, 0))
    assert found.text.startswith("y[0,0] = 0.5, which depends on w[0,0] = 2, ")
    assert [summand.value for summand in found.summands] == [0.5]


def test_the_loss_of_a_sure_class_depends_on_its_scores(tmp_path):
    scores = torch.tensor([[20.0, 0.0, 4.0], [0.0, 20.0, 6.0]], requires_grad=True)
    with record() as recording:
        loss = F.cross_entropy(scores, torch.tensor([0, 1]), reduction="none")
        loss.mean().backward()
    # log(1 + 1e-6) has few digits in float32, so the formula in float64 gives another number.
    assert "scores[1,1] = 20" in explained(recording, "loss", (1,)).text
    recording.save(tmp_path / "step.html")


def test_bias_has_the_factor_one(worked):
    assert [term.factors[1].name for term in worked.why("linear3.bias", 0).terms] == ["1", "1"]


def test_seed_and_input_have_a_sentence(worked):
    assert worked.why("cost", ()).sentence == "The backward pass began at J: its gradient is the seed, dJ/dJ = 1."
    answer = worked.why("X", (0, 0))
    assert (answer.value, answer.terms) == (None, ())
    assert answer.sentence == "X has no gradient, because nothing asked for one: requires_grad is False."


def test_document_holds_the_sum_and_the_reasons(worked):
    section = worked.why("linear1.weight", (2, 0)).document()
    assert section.title[1].source == "dJ/dW1[2,0]"
    assert section.anchor == "why-w1-2-0"
    text = repr(section)
    assert "dJ/dZ1[0,2] * X[0,0]" in text
    assert "ReLU is off: Z1[0,2] = -7.8 < 0" in text


# -- other networks ----------------------------------------------------------------------------------------------------


def test_classifier_adds_up():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    assert_adds_up(Asked(lambda: F.cross_entropy(model(x), y).backward()))


def test_value_used_twice_has_two_uses():
    h = torch.tensor([2.0, 3.0], requires_grad=True)

    def step():
        y = h * h + h
        y.sum().backward()

    asked = Asked(step, {"h": h})
    assert_adds_up(asked)
    answer = asked.why("h", 1)
    assert [use.subtotal for use in answer.uses] == [1.0, 3.0, 3.0]
    assert answer.total == 7.0
    assert "h[1]" in str(answer)


def test_shared_weight_has_one_use_for_each_layer():
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    asked = Asked(lambda: layer(torch.tanh(layer(x))).square().mean().backward())
    assert_adds_up(asked)
    name = next(iter(asked.graph.parameters))
    assert len(asked.why(name, (0, 0)).uses) == 2


def test_broadcast_bias_adds_up():
    bias, scale = torch.randn(3, requires_grad=True), torch.randn(2, 1, requires_grad=True)
    x = torch.randn(4, 2, 3)
    asked = Asked(lambda: ((x + bias) * scale).pow(2).sum().backward(), {"bias": bias, "scale": scale, "x": x})
    assert_adds_up(asked)
    assert len(asked.why("bias", 0).terms) == 8


def test_batched_matmul_adds_up():
    a, b = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 2, requires_grad=True)
    assert_adds_up(Asked(lambda: torch.matmul(a, b).sigmoid().mean().backward(), {"a": a, "b": b}))


def test_cat_and_slices_add_up():
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(2, 2, requires_grad=True)

    def step():
        joined = torch.cat([a, b, a], dim=1)
        (joined[:, 1:6].exp().sum() + torch.stack([b, b]).prod()).backward()

    asked = Asked(step, {"a": a, "b": b})
    assert_adds_up(asked)


def test_two_backward_passes_are_two_uses():
    w = torch.tensor([1.0, 2.0], requires_grad=True)

    def step():
        (w * 3).sum().backward()
        (w * w).sum().backward()

    asked = Asked(step, {"w": w})
    assert asked.why("w", 0).total == 5.0
    assert {term.factors[0].name.partition("/")[0] for term in asked.why("w", 0).terms} == {"dJ1", "dJ2"}


def test_long_sum_says_what_it_leaves_out():
    w = torch.ones(1, requires_grad=True)
    x = torch.arange(200.0)
    answer = Asked(lambda: (x * w).sum().backward(), {"w": w, "x": x}).why("w", 0)
    assert len(answer.terms) == 65
    assert answer.terms[-1].factors == ()
    assert "136 more" in str(answer)
    assert answer.total == sum(term.value for term in answer.terms) == x.sum().item()


def test_operation_without_a_rule_is_not_opened():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    w = torch.ones(2, requires_grad=True)
    answer = Asked(lambda: Double.apply(w).sum().backward(), {"w": w}).why("w", 0)
    assert answer.total == 2.0
    assert "no rule" in answer.terms[0].text


def test_gradient_that_a_hook_changed_is_said():
    w = torch.ones(2, requires_grad=True)

    def step():
        h = w * 3
        h.register_hook(lambda g: g * 10)
        h.sum().backward()

    answers = [answer for _, _, answer in Asked(step, {"w": w}).every_element()]
    assert any("a hook changed it" in answer.sentence for answer in answers)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda model, x: model.used(x).sum(), "did not use it"),
        (lambda model, x: (model.used(x) + model.other(x).detach()).sum(), "passes `detach`"),
        (lambda model, x: (model.other(x), model.used(x).sum())[1], "nothing made from it is on the way"),
    ],
)
def test_parameter_without_gradient_says_why(use, words):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return use(self, x)

    model = Model()
    x = torch.randn(3, 2)
    answer = Asked(lambda: model(x).backward()).why("other.weight", (0, 0))
    assert answer.value is None
    assert words in answer.sentence


def test_a_gradient_from_before_the_recording_is_not_denied():
    model = nn.Linear(2, 1)
    hidden = model(torch.ones(3, 2))
    with record() as recording:
        hidden.square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, parameter in recording.parameters.items():
        assert parameter.grad is not None
        sentence = recording.why(name, (0,) * parameter.grad.dim()).sentence
        assert "got a gradient" in sentence
        assert "before the recording began" in sentence
    table = str(recording).partition("━━ Parameters")[2]
    assert table.count("not checked") == len(recording.parameters) == 2
    reasons = {row.node.name: row.reason for row in recording.verify().rows if row.verdict == "not checked"}
    assert "its forward ran before the block began" in reasons["AccumulateGrad"]


def test_complex_gradients_add_up():
    w = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    asked = Asked(lambda: ((w * w * 2).abs() * w.real).sum().backward(), {"w": w})
    for value, index, answer in asked.every_element():
        assert answer.total == pytest.approx(value.grad[index].item(), rel=1e-5)


def test_sparse_gradient_of_an_embedding():
    table = nn.Embedding(5, 2, sparse=True)
    chosen = torch.tensor([1, 3, 1])
    answer = Asked(lambda: table(chosen).square().sum().backward()).why("weight", (1, 0))
    assert answer.total == pytest.approx(4 * table.weight[1, 0].item())


# -- asking ------------------------------------------------------------------------------------------------------------


def test_names_that_find_a_value(worked):
    recording = worked.recording
    assert recording["linear1.weight"] is recording["W1"]
    assert recording["linear2"] is recording["Z2"]
    assert recording["relu"] is recording["relu@2"] is recording["A2"]
    assert recording["output"] is recording["A3"]


def test_unknown_name_lists_near_matches(worked):
    with pytest.raises(MissingError) as caught:
        worked.recording["linear1.weigth"]
    assert str(caught.value).startswith(
        "There is no value named 'linear1.weigth' in this recording. Near matches: 'linear1.weight'"
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            (1,),
            "linear1.weight[1] gives 1 index, but linear1.weight has the shape (3, 2). Give 2 indices, as in (0, 0).",
        ),
        (1, "linear1.weight[1] gives 1 index, but linear1.weight has the shape (3, 2). Give 2 indices, as in (0, 0)."),
        (
            (0, 0, 0),
            "linear1.weight[0, 0, 0] gives 3 indices, but linear1.weight has the shape (3, 2). "
            "Give 2 indices, as in (0, 0).",
        ),
        (
            (0, 2),
            "linear1.weight[0, 2] is out of range: linear1.weight has the shape (3, 2). Axis 1 goes from 0 to 1.",
        ),
        (
            (0, True),
            "linear1.weight[0, True]: True is no index. Give whole numbers, one for each axis of the shape (3, 2).",
        ),
        (
            (0.0, 1),
            "linear1.weight[0.0, 1]: 0.0 is no index. Give whole numbers, one for each axis of the shape (3, 2).",
        ),
    ],
)
def test_bad_index_says_what_is_wrong(worked, index, message):
    with pytest.raises(MissingError) as caught:
        worked.why("linear1.weight", index)
    assert str(caught.value) == message


def test_negative_index_counts_from_the_end(worked):
    assert worked.why("linear1.weight", (-1, -2)).index == (2, 0)


def test_a_single_number_needs_no_index_and_others_say_that_they_do():
    scale, row = torch.tensor(2.0, requires_grad=True), torch.ones(3, requires_grad=True)
    with record() as recording:
        (scale * row).sum().backward()
    assert recording.why("scale").total == 3
    with pytest.raises(MissingError, match=r"^row gives no index, but row has the shape \(3,\)\. Give 1 index"):
        recording.why("row")


def test_what_a_maximum_did_not_take_is_not_said_to_have_no_use():
    x = torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]], requires_grad=True)
    with record() as recording:
        y = x * 1
        p = F.max_pool2d(y, 2)
        p.sum().backward()
    asked = str(recording.why("x", (0, 0, 0, 0)))
    assert "dJ/dy[0,0,0,0] = 0: p[0,0,0,0] took y[0,0,0,1], not y[0,0,0,0]" in asked


def test_an_element_that_an_index_left_out_has_a_sentence():
    a = torch.tensor([1.0, -2.0], requires_grad=True)
    with record() as recording:
        a[a > 0].sum().backward()
    assert str(recording.why("a", 1)) == "dJ/da[1] = 0: getitem does not change with a[1] here"


def test_a_complex_term_is_the_product_that_is_shown():
    z, u = torch.tensor([1 + 2j], requires_grad=True), torch.tensor([2 - 1j])
    with record() as recording:
        p = z * u
        (p * p).imag.sum().backward()
    asked = recording.why("z", 0)
    assert str(asked) == "dJ/dz[0] = dJ/dp[0] * conj(u[0]) = (6+8j) * (2+1j) = 4+22j"
    (term,) = asked.terms
    assert term.factors[0].value * term.factors[1].value == term.value == z.grad[0].item()


def test_a_tensor_is_no_name():
    w = torch.tensor([1.0], requires_grad=True)
    with record() as recording:
        loss = w.square().sum()
        loss.backward()
    for ask in (recording.why, recording.__getitem__):
        with pytest.raises(RequestError) as caught:
            ask(w)
        assert str(caught.value) == (
            "A recording is asked by a name, not by a Tensor. There are 'w', 'loss', 'sum', 'square'."
        )
