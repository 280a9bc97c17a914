"""What the facts of a recording say: names, passes, and every way in which people use autograd."""

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
from chainrule.graph.trees import tensors_in
from tests.steps import cloned


def assert_tied(graph: Any) -> None:
    """Every node that ran knows its operation, and where each of its gradients goes."""
    for node in graph.nodes:
        if not node.executions or node.leaf is not None or node.name == "AccumulateGrad":
            continue
        assert node.operation is not None, node
        assert graph.operations[node.operation].function is not None, (node, graph.operations[node.operation])
        for edge in node.edges:
            if any(
                len(p.downstream) > edge.position and p.downstream[edge.position] is not None for p in node.executions
            ):
                assert edge.value is not None, (node, edge)
                assert edge.argument is not None, (node, edge)


def names(recording: chainrule.Recording) -> set[str]:
    return {name for value in recording.graph.values for name in value.names}


# -- names ------------------------------------------------------------------------------------------------------------


def test_assignments_give_names() -> None:
    x = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)

    class Holder:
        pass

    holder = Holder()
    with chainrule.record() as recording:
        y: Tensor = x * 2
        holder.middle = y + 1
        top, places = holder.middle.sort()
        top += 1
        total = (squares := top * top).sum() + places.sum()
        a = b = total * 1
        first, (second, third) = x.unbind(0), x.split([1, 2])
        ((a + b) + first[0] + second.sum() + third.sum()).backward()
    assert recording["y"].data.tolist() == [6.0, 2.0, 4.0]
    assert recording["middle"].data.tolist() == [7.0, 3.0, 5.0]
    assert recording["top@1"].data.tolist() == [3.0, 5.0, 7.0]
    assert recording["top"].data.tolist() == [4.0, 6.0, 8.0]
    assert recording["places"].data.tolist() == [1, 2, 0]
    assert recording["squares"].data.tolist() == [16.0, 36.0, 64.0]
    assert recording["x"].kind == "parameter"
    assert {"a", "b", "total"} <= names(recording)
    assert squares is not None
    assert_tied(recording.graph)


def test_a_functions_arguments_name_what_is_passed_to_it() -> None:
    def loss(x: Tensor, w: Tensor, s: Tensor, u: Tensor, scale: float) -> Tensor:
        by_keyword = torch.mul(input=s, other=u).sum()
        return x.matmul(w).sum() + w.T.mul(s).sum() + (2 * u - s[:1]).sum() + (scale * s * (1 - u)).sum() + by_keyword

    given = [
        torch.randn(2, 3),
        torch.randn(3, 3, requires_grad=True),
        torch.randn(3),
        torch.randn(3, requires_grad=True),
    ]
    given = dict(zip("xwsu", given, strict=True))
    with chainrule.record() as recording:
        loss(**given, scale=3.0).backward()
    assert {"x", "w", "s", "u"} <= names(recording)
    assert not {"scale", "parameter", "input"} & names(recording)
    for name, tensor in given.items():
        assert torch.equal(recording[name].data, tensor.detach())
    assert set(recording.parameters) == {"w", "u"}


def test_parts_that_are_called_by_themselves_go_by_the_paths_of_their_model() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), nn.Linear(2, 3)

    model, x = Autoencoder(), torch.randn(4, 3)
    with chainrule.record() as recording:
        F.mse_loss(model.decoder(model.encoder(x)), x).backward()
    assert list(recording.parameters) == [name for name, _ in model.named_parameters()]


def test_models_that_an_object_holds_go_by_its_attributes() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.generator, self.critic = nn.Linear(3, 2), nn.Linear(2, 1)

        def step(self, x: Tensor) -> chainrule.Recording:
            with chainrule.record() as recording:
                self.critic(self.generator(x)).sum().backward()
            return recording

    found = list(Trainer().step(torch.randn(4, 3)).parameters)
    assert found == ["generator.weight", "generator.bias", "critic.weight", "critic.bias"]


def test_modules_that_are_not_called_name_their_parameters() -> None:
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
    with chainrule.record() as recording:
        h = torch.ones(5, 3)
        for layer in layers:
            h = (h @ layer.weight.T + layer.bias).relu()
        h.sum().backward()
    assert list(recording.parameters) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


def test_operators_have_names_that_one_can_say() -> None:
    x = torch.rand(3, requires_grad=True)
    with chainrule.record() as recording:
        ((2 / x[1:]).sum() + (1 - x).prod() + 2 ** x[0] + (x @ x) / 2).backward()
    assert {"getitem@1", "getitem@2", "div.reciprocal", "sub", "pow", "matmul", "sum", "prod"} <= names(recording)
    assert not any("__" in name for name in names(recording))


def test_a_loop_numbers_its_names() -> None:
    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        h = x
        for _ in range(3):
            h = h * 2
        h.sum().backward()
    assert [recording[f"h@{i}"].data[0].item() for i in (1, 2, 3)] == [2, 4, 8]
    assert recording["h"].data[0] == 8


def test_weights_in_lists_and_comprehensions() -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    with chainrule.record() as recording:
        parts = [weight * 3 for weight in weights]
        sum(part.sum() for part in parts).backward()
    assert len(recording.parameters) == 2
    assert all(parameter.grad.tolist() == [3.0, 3.0] for parameter in recording.parameters.values())


def helper(x: Tensor) -> Tensor:
    inner = x.exp()
    return inner + 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        self.gate = nn.ModuleDict({"open": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(x)
        return helper(self.gate["open"](hidden))


def test_functions_and_nested_modules() -> None:
    block = Block()
    with chainrule.record() as recording:
        out = block(torch.randn(3, 2))
        out.sum().backward()
    assert set(recording.parameters) == {"layers.0.weight", "layers.0.bias", "gate.open.weight", "gate.open.bias"}
    assert recording["hidden"].index == recording["layers"].index == recording["layers.1"].index
    assert recording["inner"].place.function == "helper"
    assert recording["inner"].place.expression == "x.exp()"
    assert recording["out"].data.shape == (3, 2)
    assert [(module.path, module.class_name) for module in recording.graph.modules] == [
        ("", "Block"),
        ("layers", "Sequential"),
        ("layers.0", "Linear"),
        ("layers.1", "Tanh"),
        ("gate.open", "Linear"),
    ]


@pytest.mark.parametrize("file", ["<stdin>", "<string>", "not there.py"])
def test_code_without_source(file: str) -> None:
    code = "with chainrule.record() as recording:\n    y = x * 2\n    y.sum().backward()\n"
    scope: dict[str, Any] = {"chainrule": chainrule, "x": torch.ones(2, requires_grad=True)}
    exec(compile(code, file, "exec"), scope)
    recording = scope["recording"]
    assert recording["y"].grad.tolist() == [1.0, 1.0]  # the scope around the block still knows its name
    assert recording.parameters["x"].grad.tolist() == [2.0, 2.0]


# -- passes -----------------------------------------------------------------------------------------------------------


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


# -- views and in-place writes ----------------------------------------------------------------------------------------


def assert_replays(graph: Any) -> None:
    """Each operation, run again on its recorded inputs, gives its recorded outputs: no value is a stale version."""
    for operation in graph.operations:
        arguments = cloned(graph.filled(operation.arguments))
        again = tensors_in(operation.function(arguments))
        for value, out in zip((v for v in operation.outputs if v is not None), again, strict=True):
            assert torch.allclose(graph.values[value].data, out), operation


def test_a_write_to_a_view_is_a_function_of_its_base() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    v = torch.tensor([10.0, 100.0], requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1
        row = h[1]
        row.mul_(v)
        (h * h).sum().backward()
    graph = recording.graph
    (node,) = (node for node in graph.nodes if node.name == "CopySlices")
    operation = graph.operations[node.operation]
    assert operation.name == "aten.mul_.Tensor"
    base, factor = node.edges
    assert (base.argument, graph.values[base.value].name) == ("base", "h@1")
    assert (factor.argument, graph.values[factor.value].name) == ("other", "v")
    assert [graph.values[out].data.tolist() for out in operation.outputs] == [[[1, 2], [30, 400]], [30, 400]]
    assert_tied(graph)
    assert_replays(graph)


def test_every_version_of_shared_memory_is_told_apart() -> None:
    torch.manual_seed(0)
    x, v = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1.5
        row = h[1]
        row.mul_(v)
        h[0] = v * v
        h[:, 2].mul_(3)
        h[[0, 2]] = torch.exp(v)
        column = h.view(4, 3)[:, 1]
        h.add_(column.sum())
        h.t_().unsqueeze_(0)
        ((h * h).sum() + (column * 2).sum() + row.sum()).backward()
    assert_tied(recording.graph)
    assert_replays(recording.graph)


def test_views_of_complex_memory() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    with chainrule.record() as recording:
        w = z * 1
        first = torch.view_as_real(w)[0]
        first.mul_(2)
        first.mul_(first.detach().sum())
        torch.view_as_real(w * w.conj()).sum().backward()
    assert_tied(recording.graph)
    assert_replays(recording.graph)


def test_writes_to_buffers_without_gradient() -> None:
    memory = torch.zeros(2, 3)
    x = torch.ones(3, requires_grad=True)
    with chainrule.record() as recording:
        memory[1].add_(x.detach())
        memory.mul_(2)
        (memory[1] * x).sum().backward()
    assert recording.parameters["x"].grad.tolist() == [2.0, 2.0, 2.0]
    assert recording["memory@1"].data.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert recording["memory"].data.tolist() == [[0, 0, 0], [2, 2, 2]]
    assert_replays(recording.graph)
