"""What one sample gets of others, values of actions, noise, teachers, sequences of one step; with healthy ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.findings.test_as_strangers_write import watched
from tests.findings.test_kinds import found_in

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


TOTALS = {
    "a total for all": (lambda p, bias: p.sum() + bias, True),
    "a total of each": (lambda p, bias: p.sum(1) + bias, False),
    "its own mean taken away": (lambda p, bias: p[:, 0] - p[:, 0].sum() / 8 + 0 * bias, False),
}


@pytest.mark.parametrize("kind", TOTALS)
def test_a_total_over_the_batch_that_each_sample_gets(kind):
    users, bias, (score, expected) = nn.Embedding(20, 4), nn.Embedding(20, 1), TOTALS[kind]
    u, y = torch.randint(0, 20, (8,)), torch.randn(8)

    def step():
        F.mse_loss(score(users(u) * users(u), bias(u).squeeze(1)), y).backward()

    assert ("samples-mix" in found_in(step, users=users, bias=bias)) == expected


@pytest.mark.parametrize("axes", [2, 3])
def test_attention_that_takes_a_batch_for_a_sequence(axes):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    head, x, y = nn.Linear(8, 3), torch.randn(6, *(5,) * (axes - 2), 8), torch.randint(0, 3, (6,))

    def step():
        out = model(x)
        F.cross_entropy(head(out if axes == 2 else out.mean(1)), y).backward()

    found = found_in(step, model=model, head=head)
    assert ("samples-mix" in found) == (axes == 2)
    if axes == 2:
        assert "takes its 6 rows for the positions of one sequence" in found["samples-mix"].sentence


VALUES = {
    "of the action": (lambda q, a: q.gather(1, a[:, None]).squeeze(1), lambda n: n.max(1).values, set()),
    "the largest": (lambda q, a: q.max(1).values, lambda n: n.max(1).values, {"value-of-best"}),
    "the largest of the batch": (lambda q, a: q, lambda n: n.max(0).values, {"best-of-batch"}),
    "the largest of all": (lambda q, a: q.gather(1, a[:, None]).squeeze(1), lambda n: n.max(), {"best-of-batch"}),
    "less the largest": (lambda q, a: q, lambda n: (n - n.max()).softmax(1), set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_whose_value_is_trained_and_whose_is_its_target(kind):
    network, target, (value, best, expected) = nn.Linear(4, 3), nn.Linear(4, 3), VALUES[kind]
    states, following, actions = torch.randn(8, 4), torch.randn(8, 4), torch.randint(0, 3, (8,))

    def step():
        prediction = value(network(states), actions)
        with torch.no_grad():
            wanted = (0.9 * best(target(following)) + torch.zeros_like(prediction)).expand_as(prediction)
        F.mse_loss(prediction, wanted).backward()

    assert {"value-of-best", "best-of-batch"} & set(found_in(step, network=network, target=target)) == expected


@pytest.mark.parametrize(("root", "expected"), [(torch.mean, True), (torch.sum, False)])
def test_the_derivative_of_a_mean_is_that_of_each_output_divided_by_their_number(root, expected):
    model, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.rand(16, 2, requires_grad=True)

    def step():
        y = model(x)
        (slope,) = torch.autograd.grad(root(y), x, create_graph=True)
        (slope[:, :1] + y).square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert ("derivative-of-mean" in found_in(step, model=model)) == expected


def test_the_derivative_of_a_loss_may_be_that_of_its_mean():
    model, x, y = nn.Linear(2, 1), torch.rand(16, 2, requires_grad=True), torch.randn(16, 1)

    def step():
        loss = (model(x) - y).square().mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert "derivative-of-mean" not in found_in(step, model=model)


ROWS = {"standardised rows": True, "standardised columns": False, "two wide columns": False}


@pytest.mark.parametrize("kind", ROWS)
def test_features_that_hardly_vary_about_means_of_their_own(kind):
    table = torch.rand(32, 4) * torch.tensor([3.0, 80000.0, 5.0, 9.0]) + torch.tensor([1.0, 40000.0, 2.0, 3.0])
    rows = (table - table.mean(1, keepdim=True)) / table.std(1, keepdim=True)
    x = {"standardised rows": rows, "standardised columns": (table - table.mean(0)) / table.std(0)}.get(kind)
    x = torch.randn(32, 4) if x is None else x
    model = nn.Linear(4, 1)
    found = found_in(lambda: model(x).square().mean().backward(), model=model)
    assert ("input-not-normalised" in found) == ROWS[kind]


@pytest.mark.parametrize(("length", "carried", "expected"), [(1, False, True), (5, False, False), (1, True, False)])
def test_sequences_of_one_step(length, carried, expected):
    lstm, head, kept = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1), []

    def loss_of(step):
        out, state = lstm(torch.randn(8, length, 3), kept[-1] if kept else None)
        if carried:
            kept.append([each.detach() for each in state])
        return head(out[:, -1]).square().mean()

    found = watched(nn.ModuleList([lstm, head]), loss_of, 8)
    assert ("one-step-sequence" in found and found["one-step-sequence"].severity == "warning") == expected


@pytest.mark.parametrize("fixed", [True, False])
def test_noise_that_was_drawn_before_the_loop(fixed):
    maker, judge, noise = nn.Linear(8, 2), nn.Linear(2, 1), torch.randn(16, 8)

    def loss_of(step):
        made = maker(noise if fixed else torch.randn(16, 8))
        return F.softplus(-judge(torch.randn(16, 2))).mean() + F.softplus(judge(made)).mean()

    assert ("noise-fixed" in watched(nn.ModuleList([maker, judge]), loss_of, 6)) == fixed


@pytest.mark.parametrize(("divide", "expected"), [(torch.floor_divide, True), (torch.true_divide, False)])
def test_integers_that_become_zero_before_a_layer(divide, expected):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.data = nn.Linear(1, 4), nn.Linear(2, 4)

        def forward(self, x, t):
            return self.data(x) + self.time(divide(t, 100).float()[:, None])

    model = Network()
    found = watched(model, lambda _: model(torch.randn(8, 2), torch.randint(0, 100, (8,))).square().mean(), 5)
    assert ("divided-to-zero" in found) == expected


@pytest.mark.parametrize(
    ("mode", "moves", "severity"), [(True, False, "warning"), (False, False, None), (True, True, "note")]
)
def test_the_dropout_of_a_teacher(mode, moves, severity):
    student = nn.Linear(4, 3)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(mode)

    def loss_of(step):
        x = torch.randn(8, 4)
        found = student(x).log_softmax(1)
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
            for each in teacher.parameters() if moves else ():
                each.mul_(0.99)
        return F.kl_div(found, wanted, reduction="batchmean")

    found = watched(nn.ModuleDict({"student": student, "teacher": teacher}), loss_of, 14,
                    torch.optim.SGD(student.parameters(), lr=0.1))  # fmt: skip
    assert getattr(found.get("teacher-in-training"), "severity", None) == severity


@pytest.mark.parametrize(("drops", "expected"), [((4, 7, 11, 15, 18), True), ((4, 11), False)])
def test_a_rate_that_falls_by_many_equal_drops_within_a_few_batches(drops, expected):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_of(step):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.1 ** sum(step >= each for each in drops)
        x = torch.randn(8, 4)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    assert ("scheduler-per-batch" in watched(model, loss_of, 24, optimizer)) == expected
