"""What the facts of a recording say: passes, hooks, number types, and every way in which people use autograd."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import chainrule
from tests.steps import assert_tied


def test_several_roots() -> None:
    x = torch.ones(3, requires_grad=True)
    with chainrule.record() as recording:
        a = x * 2
        b = x * 3
        torch.autograd.backward([a, b], [torch.ones(3), torch.full((3,), 2.0)])
    (backward,) = recording.graph.backwards
    assert [recording.nodes[node].name for node, _ in backward.roots] == ["MulBackward0", "MulBackward0"]
    assert recording["x"].grad.tolist() == [8.0, 8.0, 8.0]
    assert recording["b"].grad.tolist() == [2.0, 2.0, 2.0]
    assert_tied(recording.graph)


def test_accumulation_over_several_passes() -> None:
    w = torch.ones(2, requires_grad=True)
    w.grad = torch.full((2,), 100.0)
    with chainrule.record() as recording:
        for scale in (2.0, 3.0):
            loss = (w * scale).sum()
            loss.backward()
    assert len(recording.graph.backwards) == 2
    assert [loss.item() for loss in recording.losses] == [4.0, 6.0]
    assert recording["w"].grad.tolist() == [5.0, 5.0]
    assert recording.parameters["w"].grad.tolist() == [105.0, 105.0]
    assert {p.backward for node in recording.nodes for p in node.executions} == {0, 1}


def test_a_graph_kept_and_walked_twice() -> None:
    w = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        loss = (w * w).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert [len(node.executions) for node in recording.nodes if node.name == "MulBackward0"] == [2]
    assert recording.parameters["w"].grad.tolist() == [4.0, 4.0]
    assert_tied(recording.graph)


def test_autograd_grad_leaves_grad_alone() -> None:
    w = torch.full((2,), 3.0, requires_grad=True)
    w.grad = torch.ones(2)
    with chainrule.record() as recording:
        loss = (w**3).sum()
        (slope,) = torch.autograd.grad(loss, w)
    assert slope.tolist() == [27.0, 27.0]
    assert recording["w"].grad.tolist() == [27.0, 27.0]
    assert recording.loss == 54.0
    assert_tied(recording.graph)


def test_a_gradient_penalty_goes_back_twice() -> None:
    w = torch.full((2,), 2.0, requires_grad=True)
    with chainrule.record() as recording:
        y = (w**3).sum()
        (slope,) = torch.autograd.grad(y, w, create_graph=True)
        penalty = (slope**2).sum()
        penalty.backward()
    assert recording.parameters["w"].grad.tolist() == [2 * 12 * 12.0] * 2
    assert recording["slope"].data.tolist() == [12.0, 12.0]
    assert len(recording.graph.backwards) == 2
    assert_tied(recording.graph)


def test_parts_without_gradient() -> None:
    x = torch.full((2,), 2.0, requires_grad=True)
    with chainrule.record() as recording:
        with torch.no_grad():
            scale = x * 2
        with torch.inference_mode():
            fixed = torch.ones(2) * 3
        frozen = (x * 5).detach()
        loss = (x * scale * frozen).sum() + fixed.sum().item()
        loss.backward()
    assert recording["scale"].requires_grad is False
    assert recording["frozen"].requires_grad is False
    assert recording["fixed"].data.tolist() == [3.0, 3.0]
    assert recording.parameters["x"].grad.tolist() == [40.0, 40.0]
    assert_tied(recording.graph)


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_each_node_that_a_gradient_went_through_has_its_step(cell: type[nn.RNNBase]) -> None:
    """PyTorch's GRU writes to parts of one memory, which other parts of it must not hide."""
    torch.manual_seed(0)
    rnn = cell(2, 3)
    with chainrule.record() as recording:
        rnn(torch.randn(3, 1, 2))[0][-1].sum().backward()
    steps = recording.derivation.steps
    walked = {node for step in steps if step.kind == "backward" for node in step.nodes}
    assert {each.node for each in recording.derivation.nodes if each.operation is not None} <= walked
    made = {operation for step in steps if step.kind == "forward" for operation in step.operations}
    assert {recording.graph.nodes[each].operation for each in walked} <= made


def test_a_write_that_autograd_does_not_see() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1
        with torch.no_grad():
            h.clamp_(min=0)
        (h * h).sum().backward()
    assert recording["h"].data.tolist() == [0.0, 2.0]
    assert recording["h"].requires_grad
    assert recording["h"].grad.tolist() == [0.0, 4.0]
    assert_tied(recording.graph)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.randn(5, 3)
    with chainrule.record() as recording:
        hidden = first(x)
        out = checkpoint(lambda h: second(torch.tanh(h)), hidden, use_reentrant=reentrant)
        out.sum().backward()
    expected = torch.autograd.grad(second(torch.tanh(first(x))).sum(), [*first.parameters(), *second.parameters()])
    got = [recording.parameters[name].grad for name in names_of(recording, [*first.parameters(), *second.parameters()])]
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other)
    assert_tied(recording.graph)


def names_of(recording: chainrule.Recording, parameters: list[Tensor]) -> list[str]:
    return [
        next(name for name, each in recording.parameters.items() if torch.equal(each.before, parameter))
        for parameter in parameters
    ]


def test_functional_transforms() -> None:
    x, w = torch.randn(4, 3), torch.randn(3, requires_grad=True)
    with chainrule.record() as recording:
        rows = torch.func.vmap(lambda row: (row * w).sum())(x)
        slope = torch.func.grad(lambda v: (v**2).sum())(x)
        ((rows**2).sum() + slope.sum()).backward()
    assert recording["rows"].shape == (4,)
    assert torch.allclose(recording.parameters["w"].grad, 2 * x.T @ (x @ w.detach()))
    assert torch.allclose(recording["slope"].data, 2 * x)
    assert_tied(recording.graph)


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_a_tensor_hook_that_changes_a_gradient_is_an_event() -> None:
    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        y = x * 2
        y.register_hook(lambda gradient: gradient * 10)
        z = y + 1
        z.sum().backward()
    assert recording["z"].grad.tolist() == [1.0, 1.0]
    assert recording["x"].grad.tolist() == [20.0, 20.0]
    (event,) = recording.graph.events
    assert event.kind == "hook"
    assert "y" in event.text


def test_a_hook_on_a_leaf_is_an_event() -> None:
    x = torch.ones(2, requires_grad=True)
    handle = x.register_hook(lambda gradient: gradient.clamp(max=0.5))
    with chainrule.record() as recording:
        (x * 2).sum().backward()
    handle.remove()
    assert recording["x"].grad.tolist() == [2.0, 2.0]  # what arrived
    assert recording.parameters["x"].grad.tolist() == [0.5, 0.5]  # what the hook left
    assert [(event.kind, "x" in event.text) for event in recording.graph.events] == [("hook", True)]


def test_a_module_hook_that_changes_a_gradient_is_an_event() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    layer.register_full_backward_hook(lambda module, downstream, upstream: (downstream[0] * 0,))
    with chainrule.record() as recording:
        y = layer(x * 1)
        y.sum().backward()
    assert recording.parameters["x"].grad.tolist() == [[0.0, 0.0]]
    assert [event.kind for event in recording.graph.events] == ["hook"]


def test_hooks_that_only_look_are_no_event() -> None:
    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        y = x * 2
        y.register_hook(lambda gradient: None)
        (y * y + y).sum().backward()
    assert recording.graph.events == ()


def test_an_optimizer_in_the_backward_pass_that_frees_grad() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    with chainrule.record() as recording:
        model(torch.ones(3, 2)).sum().backward()
    assert model.weight.grad is None
    assert recording["weight"].grad.tolist() == [[3.0, 3.0]]
    assert torch.equal(recording.parameters["weight"].before, before)
    assert torch.equal(recording.parameters["weight"].after, model.weight.detach())
    assert len(recording.graph.updates) == 2
    assert_tied(recording.graph)


# -- number types -----------------------------------------------------------------------------------------------------


def test_autocast_and_grad_scaler() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with chainrule.record() as recording:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(torch.randn(3, 4))
            loss = output.float().pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert recording["output"].dtype is torch.bfloat16
    assert recording["0.weight"].dtype is torch.float32
    update = recording.graph.updates[0]
    scaled = recording["0.weight"].grad
    unscaled = next(each.grad for each in update.parameters if each.name == "0.weight")
    assert torch.equal(scaled, unscaled * 8)
    assert_tied(recording.graph)


def test_what_is_overwritten_after_the_step_keeps_its_recorded_numbers_or_has_none() -> None:
    """A state that an attribute holds, as a GradScaler does its scale, and an activation that it holds."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.scale, self.hidden = torch.full((), 4.0), self.layer(x).tanh()
            return (self.scale * self.hidden).square().mean()

    model = Model()
    with chainrule.record() as recording:
        model(torch.randn(8, 4)).backward()
    model.scale.mul_(2)
    model.hidden.detach().zero_()
    scale = next(value for value in recording.graph.values if value.shape == () and value.operation is not None)
    assert scale.data is not None
    assert scale.data.item() == 4
    verdicts = {row.node.name: row.verdict for row in recording.verify().rows}
    assert verdicts["TanhBackward0"] == "not checked"
    assert "disagrees" not in verdicts.values()


def test_a_norm_between_casts_of_autocast_passes_on_what_the_cast_takes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with chainrule.record() as recording:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(3, 4)).square().mean()
        loss.backward()
    assert all(node.rule is not None for node in recording.derivation.nodes if node.op is not None)


def test_a_weight_that_autocast_cast_before_the_recording() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.randn(4, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
        with chainrule.record() as recording:
            layer(x).sum().backward()
    assert "linear" in str(recording)
    verified = recording.verify()
    assert not verified.failures
    assert {row.node.name for row in verified.rows if row.verdict == "agrees"} >= {"AddmmBackward0", "TBackward0"}
    recording.document(pointing=True)


def test_complex_numbers() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    with chainrule.record() as recording:
        power = (z * z.conj()).real
        power.sum().backward()
    assert torch.allclose(recording.parameters["z"].grad, 2 * z.detach())
    assert_tied(recording.graph)


def test_sparse_gradients_of_an_embedding() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    with chainrule.record() as recording:
        table(torch.tensor([1, 3, 1])).sum().backward()
        optimizer.step()
    gradient = recording.parameters["weight"].grad
    assert gradient.is_sparse
    assert gradient.to_dense()[1].tolist() == [2.0, 2.0]
    assert not torch.equal(recording.parameters["weight"].after, recording.parameters["weight"].before)
    assert_tied(recording.graph)


# -- models -----------------------------------------------------------------------------------------------------------


def test_parametrizations_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2, bias=False))
            self.table = nn.Embedding(4, 2)
            self.head = nn.Linear(2, 4, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return self.head(self.encode(x) + self.table(index))

    model = Tied()
    with chainrule.record() as recording:
        model(torch.randn(2, 3), torch.tensor([0, 3])).sum().backward()
    assert set(recording.parameters) == {
        "encode.parametrizations.weight.original0",
        "encode.parametrizations.weight.original1",
        "table.weight",
    }
    uses = [edge for node in recording.nodes for edge in node.edges if edge.value == recording["table.weight"].index]
    assert len(uses) == 2
    assert torch.equal(recording["table.weight"].grad, model.table.weight.grad)
    assert_tied(recording.graph)


def test_a_gan_with_two_optimizers() -> None:
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 3), nn.Linear(3, 1)
    first = torch.optim.Adam(generator.parameters(), lr=0.1)
    second = torch.optim.SGD(critic.parameters(), lr=0.1)
    with chainrule.record() as recording:
        fake = generator(torch.randn(4, 2))
        second.zero_grad()
        loss_critic = F.softplus(critic(fake.detach())).mean()
        loss_critic.backward()
        second.step()
        first.zero_grad()
        loss_generator = F.softplus(-critic(fake)).mean()
        loss_generator.backward()
        first.step()
    assert [update.optimizer for update in recording.graph.updates] == ["SGD", "Adam"]
    assert [loss.item() for loss in recording.losses] == [loss_critic.item(), loss_generator.item()]
    assert {"generator.weight", "critic.weight"} <= set(recording.parameters)
    assert_tied(recording.graph)


def test_a_frozen_backbone() -> None:
    backbone, head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 1)
    with chainrule.record() as recording:
        head(torch.relu(backbone(torch.randn(2, 3)))).sum().backward()
    assert recording.parameters["head.weight"].grad is not None
    assert recording.parameters["backbone.weight"].grad is None
    assert_tied(recording.graph)


def test_lbfgs_runs_its_closure_inside_the_step() -> None:
    w = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], lr=0.5, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with chainrule.record() as recording:
        optimizer.step(closure)
    assert len(recording.graph.backwards) >= 2
    assert [update.optimizer for update in recording.graph.updates] == ["LBFGS"]
    assert recording.parameters["w"].before.tolist() == [3.0, -2.0]
    assert torch.equal(recording.parameters["w"].after, w.detach())
    assert recording.losses[0].item() == 13.0
    assert_tied(recording.graph)


@pytest.mark.parametrize("clip", [False, True])
def test_the_gradient_of_an_update_is_the_one_that_its_closure_left(clip: bool) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        loss = model(torch.randn(4, 3)).square().mean()
        optimizer.zero_grad()  # after the forward pass, as Lightning does
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    optimizer.step(closure)
    with chainrule.record() as recording:
        optimizer.step(closure)
    assert [each.verdict for each in recording.verify().updates] == ["agrees", "agrees"]
    changed = [found.sentence for found in recording.findings() if found.id == "gradient-changed"]
    assert len(changed) == clip
    assert all("clip_grad_norm_" in sentence for sentence in changed)


def test_what_an_optimizer_wrote_over_after_its_closure_is_not_checked() -> None:
    w = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True, foreach=True)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with chainrule.record() as recording:
        optimizer.step(closure)
    assert [each.verdict for each in recording.verify().updates] == ["not checked"]


def test_a_users_own_function() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(x)
            ctx.factor = factor
            return factor * x**3, x + 0

        @staticmethod
        def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
            (x,) = ctx.saved_tensors
            return first * ctx.factor * 3 * x**2 + second, None

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        cubes, same = Cube.apply(x, 2.0)
        (cubes.sum() + same.sum()).backward()
    node = next(node for node in recording.nodes if node.function_class is Cube)
    assert [recording.graph.values[out].name for out in node.outputs] == ["cubes", "same"]
    assert recording.graph.operations[node.operation].arguments["factor"] == 2.0
    assert recording["x"].grad.tolist() == [7.0, 25.0]
    assert_tied(recording.graph)


@pytest.mark.slow
def test_a_compiled_model_is_recorded_eagerly() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with chainrule.record() as recording:
            model(torch.ones(1, 2)).sum().backward()
    assert any(node.name == "AddmmBackward0" for node in recording.nodes)
    assert any("compile" in note for note in recording.graph.notes)
    assert_tied(recording.graph)
