"""Trainings that end in an exception of PyTorch's, as they are asked about in public, by what must be said of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

FAILING: dict[str, tuple[str, tuple[str, ...], Callable[[], Any]]] = {}
"""Name -> (the id, parts of the sentence, the training)."""


def fails(*parts: str, id: str = "backward-failed") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a training into the bed."""

    def enter(training: Callable[[], Any]) -> Callable[[], Any]:
        FAILING[training.__name__] = (id, parts, training)
        return training

    return enter


def train(loss: Callable[[], torch.Tensor], *parts: Any, steps: int = 4, rate: float = 0.1, **options: Any) -> None:
    """The usual loop over the parameters of these modules."""
    tensors = [each for part in parts for each in (part.parameters() if isinstance(part, nn.Module) else [part])]
    optimizer = torch.optim.SGD(tensors, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward(**options)
        optimizer.step()


# -- written over ------------------------------------------------------------------------------------------------------


@fails("saved h", "`h += 1` (failing.py:", "wrote over it")
def a_sum_in_place_after_a_sigmoid():
    body, head = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()), nn.Linear(8, 2)

    def loss():
        h = body(torch.randn(16, 4))
        h += 1
        return head(h).square().mean()

    train(loss, body, head)


@fails("`torch.exp(model(torch.randn(5, 4)))` (failing.py:", "saved h", "`h[:, 0] = ...` (failing.py:")
def an_assignment_to_elements():
    model = nn.Linear(4, 4)

    def loss():
        h = torch.exp(model(torch.randn(5, 4)))
        h[:, 0] = 0
        return h.mean()

    train(loss, model)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = torch.tanh(self.inner(x))
        return self.relu(y) + y


@fails("saved y", "`self.relu(y)` (failing.py:")
def a_relu_in_place_on_a_tanh():
    model = nn.Sequential(Residual(), Residual())
    train(lambda: model(torch.randn(5, 4)).square().mean(), model)


@fails("saved y", "`y[:2].mul_(2)` (failing.py:")
def a_write_through_a_view():
    model = nn.Linear(4, 4)

    def loss():
        y = model(torch.randn(5, 4)).sigmoid()
        y[:2].mul_(2)
        return y.sum()

    train(loss, model)


@fails("saved scale", "`scale.fill_(3.0)` (failing.py:")
def a_buffer_that_is_set_between_forward_and_backward():
    model, scale = nn.Linear(4, 4), torch.ones(4)

    def loss():
        out = (model(torch.randn(5, 4)) * scale).sum()
        scale.fill_(3.0)
        return out

    train(loss, model)


def gan(d_first: bool):
    G, D = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1))
    of_g, of_d = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
    for _ in range(3):
        score = D(G(torch.randn(16, 4)))
        d_loss, g_loss = F.softplus(score).mean(), F.softplus(-score).mean()
        if d_first:
            d_loss.backward(retain_graph=True)
            of_d.step()
            g_loss.backward()
            of_g.step()
        else:
            g_loss.backward(retain_graph=True)
            of_g.step()
            d_loss.backward()
            of_d.step()


@fails("`D(G(torch.randn(16, 4)))` (failing.py:", "saved D.1.weight", "`of_d.step()` (failing.py:")
def a_generator_that_learns_after_the_discriminator_stepped():
    gan(True)


@fails("saved G.2.weight", "`of_g.step()` (failing.py:")
def a_discriminator_that_learns_after_the_generator_stepped():
    gan(False)


@fails("saved rnn.weight_hh in step", "`optimizer.step()` (failing.py:")
def a_hidden_state_with_retain_graph():
    rnn, h = nn.GRUCell(4, 8), torch.zeros(16, 8)

    def loss():
        nonlocal h
        h = rnn(torch.randn(16, 4), h)
        return h.square().mean()

    train(loss, rnn, retain_graph=True)


# -- freed -------------------------------------------------------------------------------------------------------------


@fails("the graph of step 1", "h, made by `rnn(torch.randn(16, 4), h)` (failing.py:", "not detached")
def a_hidden_state_that_is_not_detached():
    rnn, h = nn.GRUCell(4, 8), torch.zeros(16, 8)

    def loss():
        nonlocal h
        h = rnn(torch.randn(16, 4), h)
        return h.square().mean()

    train(loss, rnn)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, state):
        y, state = self.lstm(x, state)
        return self.out(y), state


@fails("the graph of step 1", "`self.lstm(x, state)` (failing.py:")
def the_state_of_an_lstm_that_is_not_detached():
    model, state = Tagger(), None

    def loss():
        nonlocal state
        y, state = model(torch.randn(3, 5, 4), state)
        return y.square().mean()

    train(loss, model)


@fails("the graph of step 1", "total, made by `total + model(torch.randn(8, 4)).tanh().mean()` (failing.py:")
def a_running_loss():
    model, total = nn.Linear(4, 4), 0

    def loss():
        nonlocal total
        total = total + model(torch.randn(8, 4)).tanh().mean()
        return total

    train(loss, model)


@fails("the graph of step 1", "adjacency comes from there")
def a_tensor_that_is_made_before_the_loop():
    model, nodes = nn.Linear(4, 4), nn.Parameter(torch.randn(6, 4))
    adjacency = torch.softmax(nodes @ nodes.t(), dim=1)
    train(lambda: (adjacency @ model(torch.randn(6, 4))).square().mean(), model, nodes)


@fails("which makes z, a second time", "`one.backward()` (failing.py:")
def two_losses_of_one_encoder():
    body, a, b = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1), nn.Linear(8, 1)
    optimizer = torch.optim.SGD([*body.parameters(), *a.parameters(), *b.parameters()], 0.1)
    for _ in range(3):
        z = body(torch.randn(16, 4))
        one, two = a(z).square().mean(), b(z).abs().mean()
        one.backward()
        two.backward()
        optimizer.step()


@fails("a second time", "`d_loss.backward()` (failing.py:")
def fakes_that_are_not_detached():
    G, D = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
    of_g, of_d = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
    for _ in range(3):
        fake = G(torch.randn(16, 4))
        d_loss = D(fake).log().mean()
        d_loss.backward()
        g_loss = (1 - D(fake)).log().mean()
        g_loss.backward()
        of_d.step()
        of_g.step()


# -- no gradient, and more than one number -----------------------------------------------------------------------------


@fails("loss, which has no gradient", "detach()` (failing.py:", "cuts")
def a_detached_output():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    y = model(torch.randn(16, 4)).detach()
    loss = y.square().mean()
    loss.backward()
    optimizer.step()


@fails("loss, which has no gradient", "argmax(1)` (failing.py:", "int64, which has no derivative")
def an_accuracy_as_the_loss():
    model = nn.Linear(4, 2)
    loss = (model(torch.randn(16, 4)).argmax(1) != torch.randint(2, (16,))).float().mean()
    loss.backward()


@fails("loss, which has no gradient", "`torch.tensor(y.item())` (failing.py:", "from numbers")
def a_loss_made_from_a_number():
    model = nn.Linear(4, 2)
    y = model(torch.randn(16, 4)).square().mean()
    loss = torch.tensor(y.item())
    loss.backward()


@fails("loss, which has no gradient", "none of the parameters")
def a_model_that_is_frozen():
    model = nn.Linear(4, 2).requires_grad_(False)
    loss = model(torch.randn(16, 4)).square().mean()
    loss.backward()


@fails("loss, which has no gradient")
def a_forward_pass_under_no_grad():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        y = model(torch.randn(16, 4))
    loss = y.square().mean()
    loss.backward()


@fails("loss of shape (16,)", "only a single number")
def a_loss_without_a_reduction():
    model = nn.Linear(4, 2)
    loss = F.cross_entropy(model(torch.randn(16, 4)), torch.randint(2, (16,)), reduction="none")
    loss.backward()


# -- code of the user's ------------------------------------------------------------------------------------------------


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x, factor)
        return x * factor

    @staticmethod
    def backward(ctx, gradient):
        x, factor = ctx.saved_tensors
        return gradient * factor, (gradient * x)[:, :2].sum(0)


class OneForTwo(Scale):
    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Raising(Scale):
    @staticmethod
    def backward(ctx, gradient):
        x, _ = ctx.saved_tensors
        return gradient @ x, None


def of_function(function: Any) -> None:
    model, factor = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
    train(lambda: function.apply(model(torch.randn(16, 4)), factor).square().mean(), model, factor)


@fails("Scale.backward returned a wrong gradient for the argument factor", "[2]", "[3]")
def a_function_that_returns_a_wrong_shape():
    of_function(Scale)


@fails("OneForTwo.backward returned 1 gradients", "2 arguments (x, factor)")
def a_function_that_returns_too_few():
    of_function(OneForTwo)


@fails("Raising.backward, which backward called, raised RuntimeError: mat1 and mat2")
def a_function_whose_backward_raises():
    of_function(Raising)


@fails("clip, which backward called, raised IndexError")
def a_hook_that_raises():
    model = nn.Linear(4, 2)

    def clip(gradient):
        return gradient / gradient.norm(dim=5)

    def loss():
        y = model(torch.randn(16, 4))
        y.register_hook(clip)
        return y.square().mean()

    train(loss, model)


@fails("appears to not have been used")
def a_gradient_of_what_was_not_used():
    model, x = nn.Linear(4, 2), torch.randn(3, 4, requires_grad=True)
    torch.autograd.grad(model(x).sum(), torch.zeros(3, requires_grad=True))


# -- forbidden by autograd ---------------------------------------------------------------------------------------------


@fails("`p -= 0.1 * p.grad` writes in place to a leaf")
def an_update_by_hand_outside_of_no_grad():
    model = nn.Linear(4, 2)
    model(torch.randn(16, 4)).square().mean().backward()
    for p in model.parameters():
        p -= 0.1 * p.grad


@fails("`model.weight[0].zero_()` writes to a part of a leaf")
def a_row_of_a_weight_that_is_set():
    model = nn.Linear(4, 2)
    model(torch.randn(16, 4))
    model.weight[0].zero_()


@fails("`a *= 2` writes in place to a view")
def a_chunk_that_is_scaled_in_place():
    model = nn.Linear(4, 6)
    a, _ = model(torch.randn(16, 4)).chunk(2, dim=1)
    a *= 2


# -- layers and operations ---------------------------------------------------------------------------------------------


@fails("Layer 2, Linear(in_features=100, ", "takes 100 features, and its input has 144", id="forward-failed")
def a_linear_layer_after_flatten():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(100, 2))
    train(lambda: model(torch.randn(5, 1, 8, 8)).square().mean(), model)


@fails("Embedding(10, 4), has 10 rows, 0 to 9, and it was asked for indices from 1 to 10", id="forward-failed")
def an_index_beyond_the_vocabulary():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten())
    train(lambda: model(torch.tensor([[1, 2, 10]])).square().mean(), model)


@fails("3 classes, 0 to 2, and a target is 3", "from 1 to 3", id="forward-failed")
def labels_that_begin_at_one():
    model = nn.Linear(4, 3)
    train(lambda: F.cross_entropy(model(torch.randn(3, 4)), torch.tensor([1, 2, 3])), model)


@fails("input length of 9", "7 time steps", id="forward-failed")
def lengths_beyond_the_log_probabilities():
    model, ctc = nn.Linear(4, 5), nn.CTCLoss()
    lengths = torch.tensor([7, 9]), torch.tensor([3, 2])
    train(lambda: ctc(model(torch.randn(7, 2, 4)).log_softmax(2), torch.randint(1, 5, (2, 3)), *lengths), model)


@fails("Linear(in_features=4, ", "Double and Float", id="forward-failed")
def numbers_of_numpy():
    model = nn.Linear(4, 3)
    train(lambda: model(torch.randn(6, 4).double()).square().mean(), model)


@fails("takes 3 channels, and its input has 8 in dimension 1", id="forward-failed")
def images_with_the_channels_last():
    model = nn.Conv2d(3, 4, 3)
    train(lambda: model(torch.randn(2, 8, 8, 3)).square().mean(), model)


@fails("3 and 4 elements in dimension 1", id="forward-failed")
def two_widths_that_are_added():
    one, other = nn.Linear(4, 3), nn.Linear(4, 4)
    train(lambda: (one(torch.ones(2, 4)) + other(torch.ones(2, 4))).sum(), one, other)


@fails("needs a hidden state of shape (1, 3, 8), and got [1, 4, 8]", id="forward-failed")
def a_last_batch_that_is_smaller():
    gru = nn.GRU(4, 8)
    train(lambda: gru(torch.randn(5, 3, 4), torch.zeros(1, 4, 8))[0].sum(), gru)
