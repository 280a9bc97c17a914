"""The verdicts of a document are those of the gradient check, and what is wrong is said to be so wherever it shows."""

import html
import itertools
import json
import re
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import chainrule
from chainrule import report
from chainrule.document import Verdict
from chainrule.views.json import from_json
from tests.steps import spoil_rule
from tests.views.pages import data_of
from tests.zoo.models import ZOO


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def recorded(step):
    with chainrule.record() as recording:
        step()
    return recording


def plain(text):
    return "".join(span if isinstance(span, str) else span.source for span in text)


def verdicts(document):
    return [block for _, section in document.walk() for block in section.blocks if isinstance(block, Verdict)]


def checks(recording):
    """The verdicts on the gradient and on the update of each parameter, as the brief table has them."""
    *_, section = recording.document(brief=True).sections
    (table,) = section.blocks
    assert table.headers == ("parameter", "before", "gradient", "check", "after", "update")
    return {row[0][0]: (row[3][0], row[5][0]) for row in table.rows}


def head(document):
    """The verdict at the head of a document, without what was compared."""
    verdict = document.summary[0]
    return verdict.kind, plain(verdict.text).partition("; compared: ")[0]


def heads(recording, tmp_path):
    """The verdict at the head of each view, as it is before `verify` has run, where that does not run unasked."""
    found = {
        "brief": head(recording.document(brief=True)),
        "walk": head(recording.document()),
        "page": head(recording.document(pointing=True)),
        "notebook": head(recording.document(coded=True)),
    }
    recording.save(tmp_path / "step.json")
    found["json"] = head(from_json((tmp_path / "step.json").read_text()))
    found["verify"] = head(recording.verify().document())
    found["brief after it"] = head(recording.document(brief=True))
    return found


def same_verdicts(recording, unasked=True):
    """The verdict of every contribution is that of its node's row, after `verify` has run, and `unasked` before it."""
    facts = recording.graph, recording.derivation, recording.notation
    rows = {row.node.index: row for row in recording.verify().rows}
    for context in (report.Context(*facts, rows=rows), *([report.Context(*facts)] if unasked else ())):
        for step in recording.steps:
            for contribution in step.contributions:
                if contribution.gradient is not None and contribution.recorded is not None and len(step.nodes) == 1:
                    found, row = context.checks.contribution(contribution), rows[step.nodes[0]]
                    assert found.verdict == row.verdict, (step.index, contribution.argument, row.reason)


HARD = {
    "layer norm far from 0": lambda x: F.layer_norm(1e3 + 0.01 * x, (8,)),
    "a linear layer before it": lambda x: F.layer_norm(5e2 + x @ torch.randn(8, 8), (8,)),
    "batch norm far from 0": lambda x: F.batch_norm(3e3 + 0.02 * x, None, None, training=True),
    "instance norm far from 0": lambda x: F.instance_norm((2e3 + 0.01 * x)[None]),
    "variance far from 0": lambda x: (1e4 + x).var(1),
    "saturated softmax": lambda x: (80 * x).softmax(1),
    "saturated tanh": lambda x: (9 + x).tanh(),
    "logsumexp of large numbers": lambda x: (1e3 * x).logsumexp(1),
    "distances of near points": lambda x: torch.cdist(x, x.detach() + 1e-4),
    "a difference of near numbers": lambda x: ((x + 1e4) - 1e4).exp(),
    "a kink": lambda x: x.relu() + (x - x.detach()).abs(),
    "bfloat16": lambda x: F.gelu(x.bfloat16() @ torch.randn(8, 8).bfloat16()).float(),
}


@pytest.mark.parametrize("name", HARD)
def test_a_document_and_the_gradient_check_give_one_verdict(name):
    x = torch.randn(6, 8, requires_grad=True)

    def step():
        out = HARD[name](x)
        (out * torch.randn(out.shape)).sum().backward()

    recording = recorded(step)
    assert recording.verify().passed
    unasked = recorded(step)
    for document in (unasked.document(brief=True), unasked.document(), recording.document(pointing=True)):
        assert {each.kind for each in verdicts(document)} <= {"agrees", "by convention", "not checked"}
    same_verdicts(recording)


@pytest.mark.parametrize("by", [0.0, 6.0, 12.0, 26.0, 60.0])
def test_confident_predictions_agree(by):
    logits = torch.tensor([[14.0 + by, 0.0, -3.0], [19.0 + by / 3, 1.0, 2.0]], requires_grad=True)
    recording = recorded(lambda: F.cross_entropy(logits, torch.tensor([0, 0])).backward())
    assert not recording.verify().failures
    same_verdicts(recording)


class Wrong(Function):
    """y = x^2 / 2, with a gradient that is twice too large in its last element."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx, up):
        (x,) = ctx.saved_tensors
        back = x * up
        back[-1] *= 2
        return back


@pytest.mark.parametrize("size", [5, 700, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_wrong_element_among_large_ones_is_caught(size, dtype):
    x = (1e3 * (1 + torch.rand(size, dtype=dtype))).requires_grad_()
    with torch.no_grad():
        x[-1] = 2e-3
    recording = recorded(lambda: Wrong.apply(x).sum().backward())
    (failure,) = recording.verify().failures
    assert failure.node.name == "WrongBackward"
    assert [wrong.index for wrong in failure.wrong] == [(size - 1,)]


def test_a_wrong_backward_is_said_to_be_wrong_in_every_view(tmp_path):
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    v = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    recording = recorded(lambda: (Wrong.apply(w * 3) + v).sum().backward())
    assert list(checks(recording).values()) == [("disagrees", ""), ("agrees", "")]
    kinds = {each.kind for each in verdicts(recording.document())}
    assert "disagrees" in kinds
    for name in ("txt", "md", "html", "tex", "json", "ipynb"):
        recording.save(tmp_path / f"step.{name}")
        assert "disagrees" in (tmp_path / f"step.{name}").read_text(), name
    assert not recording.verify().passed
    assert list(checks(recording).values()) == [("disagrees", ""), ("agrees", "")]
    same_verdicts(recording)


def test_a_wrong_rule_is_said_to_be_wrong_in_the_document_too(monkeypatch):
    spoil_rule(monkeypatch, "SinBackward0", lambda op, g: g * op.self.cos() * 1.0001)
    x = torch.randn(6, requires_grad=True)
    recording = recorded(lambda: (x * 2).sin().sum().backward())
    assert [each.kind for each in verdicts(recording.document())].count("disagrees") >= 1
    assert [row.node.name for row in recording.verify().failures] == ["SinBackward0"]


def test_an_update_that_changes_a_tiny_weight_wrongly_is_caught():
    w = nn.Parameter(torch.tensor([1e4, 2e-4, -3e4]))
    optimizer = torch.optim.SGD([w], 0.1)
    with chainrule.record() as recording:
        (w * torch.tensor([1e3, 1e-3, 1e3])).sum().backward()
        optimizer.step()
    assert checks(recording) == {"w": ("agrees", "agrees")}
    (update,) = recording.graph.updates
    (each,) = update.parameters
    each.after[1] -= 1e-4  # twice what it was to change
    again = chainrule.Recording.of(recording.graph)
    assert checks(again) == {"w": ("agrees", "disagrees")}
    assert again.verify().verdict == "disagrees"
    assert "✗ update of w" in head(again.document())[1]
    told = [each for each in verdicts(recording.document()) if each.kind == "disagrees"]
    assert len(told) == 1
    assert re.search("after", "".join(str(span) for span in told[0].text))


def checked(optimizer: torch.optim.Optimizer, w: torch.Tensor, moved: float = 0.0) -> str:
    """The verdict on a step of the optimizer, after which one element was moved by a part of its change."""
    with chainrule.record(namespace={"w": w}) as recording:
        optimizer.step()
    (each,) = recording.graph.updates[0].parameters
    each.after[0] += (moved * (each.after[0] - each.before[0])).to(w.dtype)
    return chainrule.Recording.of(recording.graph).verify().updates[0].verdict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_centred_update_of_a_coarse_type_whose_variance_cancels(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(12, generator=generator).to(dtype)
    optimizer = torch.optim.RMSprop([w], centered=True, alpha=0.5)
    for _ in range(8):
        w.grad = grad.clone()
        assert checked(optimizer, w) != "disagrees"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "Adafactor"])
def test_an_update_moved_by_a_third_of_its_step_disagrees(name: str, dtype: torch.dtype):
    w = torch.tensor([0.3, -0.5], dtype=dtype, requires_grad=True)
    optimizer = getattr(torch.optim, name)([w], lr=0.1)
    for moved, verdict in ((0.0, "agrees"), (0.36, "disagrees")):
        w.grad = torch.tensor([0.7, -0.4], dtype=dtype)
        assert checked(optimizer, w, moved) == verdict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Adam", "Adagrad", "SGD"])
def test_a_fused_update_of_a_coarse_type_rounds_only_what_it_stores(name: str, dtype: torch.dtype):
    for scale in (1e-6, 1e-3, 1.0)[2 * (name == "SGD") :]:
        w = torch.linspace(-0.02, 0.02, 40).to(dtype).requires_grad_()
        optimizer = getattr(torch.optim, name)([w], lr=0.1, fused=True)
        for moved in (0.0, 0.0, 0.36):
            before, w.grad = w.detach().clone(), torch.linspace(scale, 2 * scale, 40).to(dtype)
            verdict = checked(optimizer, w, moved)
            step = (w - before).detach()
            # Fused SGD of PyTorch 2.12 and 2.13 leaves whole vectors of coarse types as they were (pytorch#191763).
            assert verdict == ("disagrees" if moved or not step.all() else "agrees")


def test_an_update_with_settings_that_are_tensors_of_a_coarser_type():
    w = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    for options in ({"lr": torch.tensor(0.01)}, {"betas": (torch.tensor(0.9), torch.tensor(0.99))}):
        optimizer = torch.optim.RAdam([w], **options)
        for step in range(7):
            w.grad = torch.tensor([0.7, 0.1 * step - 0.4], dtype=torch.float64)
            assert checked(optimizer, w, 0.1 * (step == 6)) == ("disagrees" if step == 6 else "agrees")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("switch", ["differentiable", "capturable"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "ASGD"])
def test_an_update_whose_steps_are_counted_in_a_tensor(
    name: str, switch: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    module = sys.modules[f"torch.optim.{name.removesuffix('W').lower()}"]
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])  # to try it on the processor
    for foreach in (False, True) if switch == "capturable" else (False,):
        leaf = torch.tensor([0.3, -0.5], dtype=dtype, requires_grad=True)
        w = leaf.clone() if switch == "differentiable" else leaf
        optimizer = getattr(torch.optim, name)([w], lr=0.01, weight_decay=0.1, foreach=foreach, **{switch: True})
        for step in range(7):
            w.grad = torch.tensor([0.7, 0.1 * step - 0.4], dtype=dtype)
            with chainrule.record(namespace={"w": w}) as recording:
                optimizer.step()
            assert [each.verdict for each in recording.verify().updates] == ["agrees"]


def test_why_an_update_of_a_known_optimizer_is_not_checked():
    class SGD(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(0.1 * parameter.grad.sign())

    w = torch.randn(4, 2, requires_grad=True)
    sparse = torch.sparse_coo_tensor([[1, 1]], torch.randn(2, 2), (4, 2), check_invariants=True)
    for optimizer, gradient, reason in (
        (SGD([w], lr=0.1), torch.randn(4, 2), f"we have no rule for {__name__}.SGD"),
        (torch.optim.SGD([w], lr=0.1), sparse, "our rule for SGD is for dense tensors, and its gradient is not dense"),
        (torch.optim.SparseAdam([w]), sparse, "we have no rule for SparseAdam"),
    ):
        w.grad = gradient
        with chainrule.record(namespace={"w": w}) as recording:
            optimizer.step()
        assert [(each.verdict, each.reason) for each in recording.verify().updates] == [("not checked", reason)]
        assert f"{reason[1:]}: before, after and their difference" in plain(str(recording.document()))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adadelta"])
def test_a_hook_of_an_optimizer_that_changes_gradients_before_the_step(name: str):
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: [each.grad.neg_() for each in model.parameters()] and None)
    with chainrule.record() as recording:
        model(x).square().sum().backward()
        optimizer.step()
    check = recording.verify()
    assert not check.failures, [(row.node.name, row.reason) for row in check.failures]
    assert "disagrees" not in {each.verdict for each in check.updates}


class Echo:
    """A hook whose every attribute is itself, as a proxy's or a mock's may be."""

    def __init__(self, change):
        self.__dict__["change"] = change

    def __getattr__(self, name):
        return self

    def __call__(self, *_):
        self.change()


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (lambda change: lambda *_: change(), "<lambda> (test_one_verdict.py:"),
        (Echo, "Echo"),
        (lambda change: partial(Echo(change)), "Echo"),
    ],
)
def test_a_hook_of_an_optimizer_that_changes_parameters_is_named(of, name):
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def change():
        with torch.no_grad():
            model.weight.mul_(2)

    optimizer.register_step_post_hook(of(change))
    with chainrule.record() as recording:
        model(x).square().sum().backward()
        optimizer.step()
    (wrong,) = [each for each in recording.verify().updates if each.verdict == "disagrees"]
    assert name in wrong.reason


SMALL = ("vae",)


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=[pytest.mark.slow, pytest.mark.sweep]) for name in ZOO]
)
def test_every_view_of_a_model_gives_the_same_verdicts(name, tmp_path):
    model, loss = ZOO[name]()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        loss(model).backward()
        optimizer.step()

    recording = recorded(step)
    found = heads(recording, tmp_path)
    assert len(set(found.values())) == 1, found
    assert found["walk"][0] == "agrees"
    same_verdicts(recording, unasked=False)
    of_node = {row.node.index: row.verdict for row in recording.verify().rows}
    of_value = {recording.notation.plain(each.index): of_node.get(each.node) for each in recording.graph.values}
    page, written = recording.document(pointing=True), from_json((tmp_path / "step.json").read_text())
    assert {row.name: row.verdict for row in page.rows} == {row.name: of_value[row.name] for row in page.rows}
    assert [row.verdict for row in written.rows] == [row.verdict for row in page.rows]


class Forgotten(Function):
    """y = a + 3 b, without a gradient for b."""

    @staticmethod
    def forward(ctx, a, b):
        return a + 3 * b

    @staticmethod
    def backward(ctx, up):
        return up, None


def halved_after_its_step(w):
    optimizer = torch.optim.SGD([w], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: torch._foreach_mul_([w.data], 0.5))
    w.square().sum().backward()
    optimizer.step()


def hooked_at_the_leaf(w):
    w.register_hook(lambda g: 2 * g)
    w.sin().square().sum().backward()


NUMBERS = "autograd 12, measured 6 at x[1]"
FAILING = {
    "wrong numbers": (
        lambda w: Wrong.apply(w * 3).sum().backward(),
        "disagrees",
        "3 of 4 autograd nodes agree",
        NUMBERS,
    ),
    "several": (lambda w: sum(Wrong.apply(w * n).sum() for n in range(2, 7)).backward(), "disagrees", "✗ 2 more", ""),
    "no gradient": (lambda w: Forgotten.apply(w * 1, w * 2).sum().backward(), "disagrees", "measured [3, 3]", ""),
    "vmap": (lambda w: torch.vmap(Mapped.apply)(w * 3).sum().backward(), "disagrees", "VmappedMapped", ""),
    "update": (halved_after_its_step, "disagrees", "✗ update of `w`", ""),
    "hook": (hooked_at_the_leaf, "not checked", "a hook on `w` changed its gradient", ""),
    "unseen write": (lambda w: set_by_numpy(w).square().sum().backward(), "not checked", "PyTorch does not see", ""),
    "cannot run again": (lambda w: Drawn.apply(w * 1).sum().backward(), "not checked", "your own", ""),
}


class Mapped(Function):
    """y = x^2, with a wrong gradient, also under vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, up):
        return 3 * ctx.saved_tensors[0] * up


def words(text):
    """The words and numbers of a text in any markup."""
    return re.findall(r"[^\W_]+", re.sub(r"\\(allowbreak|ensuremath|times|texttt)|\\n", " ", html.unescape(text)))


def texts(data):
    """The texts in the data of a view, in their order."""
    if isinstance(data, str):
        return data
    return " ".join(map(texts, data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()))


def told(recording, tmp_path):
    """The text of each view, saved, printed or shown in a notebook."""
    found = {"printed": str(recording), "verify": str(recording.verify())}
    for name in ("txt", "md", "html", "tex", "ipynb", "json"):
        recording.save(tmp_path / f"step.{name}")
        text = (tmp_path / f"step.{name}").read_text()
        data = data_of(text) if name == "html" else json.loads(text) if name in ("ipynb", "json") else text
        found[name] = texts(data)
    frame = html.unescape(recording._repr_mimebundle_()["text/html"])
    return found | {"frame": texts(data_of(frame))}


@pytest.mark.parametrize("name", FAILING)
def test_every_view_says_one_thing_of_a_failing_step(name, tmp_path):
    step, kind, begins, ends = FAILING[name]
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    recording = recorded(lambda: step(w))
    found = heads(recording, tmp_path)
    assert len(set(found.values())) == 1, found
    assert found["verify"][0] == kind
    said = found["verify"][1]
    assert begins.replace("`", "") in said
    assert said.endswith(ends)
    for view, text in told(recording, tmp_path).items():
        assert " ".join(words(said)) in " ".join(words(text)), view


class Half(Function):
    """y = x^2 / 2, with the right gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx, up):
        return ctx.saved_tensors[0] * up


def test_a_step_without_a_rule_is_not_proved_by_autograd_itself():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    (verdict,) = [
        each for each in verdicts(recorded(lambda: Half.apply(w * 3).sum().backward()).document())
        if "our rules" not in plain(each.text)
    ]  # fmt: skip
    assert (verdict.kind, verdict.difference) == ("agrees", None)
    assert verdict.measured.elements == pytest.approx((3.0, 6.0), rel=1e-6)


class Drawn(Function):
    """Noise that no one can draw again, as it comes from a generator of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return x * ctx.noise

    @staticmethod
    def backward(ctx, up):
        return up * ctx.noise


class Counting(Function):
    """y = n x at call n, also under vmap."""

    generate_vmap_rule = True
    calls = itertools.count(1)

    @staticmethod
    def forward(x):
        return x * next(Counting.calls)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, up):
        return up


def hooked(x):
    for place in range(3):
        x = (x * 2).sin()
        if place == 1:
            x.register_hook(lambda g: g * 3)
    return x


@torch.library.custom_op("chainrule_tests::drawn", mutates_args=())
def drawn(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rand(x.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))


drawn.register_autograd(lambda ctx, up: up)


@pytest.mark.parametrize(
    ("function", "own"),
    [
        (Drawn.apply, "autograd.Function"),
        (torch.vmap(Counting.apply), "autograd.Function"),
        (drawn, "custom operator"),
        (hooked, "hook"),
    ],
)
def test_what_is_the_users_own_and_unchecked_is_no_pass(function, own):
    w = nn.Parameter(torch.randn(5))
    recording = recorded(lambda: function(w * 1).sum().backward())
    verification = recording.verify()
    assert [row.own for row in verification.unchecked] == [own]
    assert not verification.passed
    assert not verification.failures
    assert repr(verification).startswith("<chainrule.Verification: 1 of your own not checked")
    kind, text = head(recording.document(brief=True))
    assert kind == "not checked"
    assert "not checked: your own" in text
    assert "rounding on the way" not in str(recording.document())  # the walk goes on from what the hook made


def set_by_numpy(w):
    y = w.sin()
    w.detach().numpy()[...] = 0.5
    return y


def replaced(w):
    y = w.sin()
    w.data = torch.rand(5)
    return y


def hooked_at_its_node(w):
    y = w.sin()
    y.grad_fn.register_hook(lambda sent, arrived: (3 * sent[0],))
    return y


def between(w):
    h = w * 2
    y = h.sin()
    h.detach().numpy()[...] *= 2
    return y


@pytest.mark.parametrize("function", [set_by_numpy, replaced, hooked_at_its_node, between])
def test_what_was_changed_unseen_is_no_pass(function):
    w = nn.Parameter(torch.linspace(0.1, 1.0, 5))
    verification = recorded(lambda: function(w).square().sum().backward()).verify()
    assert not verification.passed
    assert verification.verdict == "not checked"
    assert {row.own for row in verification.unchecked} == {"unseen write"}
    assert any("PyTorch does not see" in row.reason for row in verification.unchecked)
    assert "not checked" in str(verification.document().summary)


def test_what_pytorch_does_unchecked_is_counted():
    w = nn.Parameter(torch.randn(3, 4))

    def step():
        h = w * 2
        h[:, 1] = h[:, 0] * 3
        h.square().sum().backward()

    recording = recorded(step)
    unchecked = [row for row in recording.verify().rows if row.verdict == "not checked" and row.node.executions]
    kind, text = head(recording.document())
    assert kind == ("not checked" if unchecked else "agrees")
    assert (f"{len(unchecked)} of PyTorch's own not checked" in text) == bool(unchecked)
    large, product = torch.randn(200, 200), nn.Parameter(torch.randn(8, 200))
    with chainrule.record(keep="statistics") as recording:
        (product @ large).tanh().mean(0)[:4].square().sum().backward()
    assert recording.verify().passed  # nothing of the user's own is open
    kind, text = head(recording.verify().document())
    assert kind == "not checked"
    assert "6 of 7 autograd nodes agree; 1 of PyTorch's own not checked" in text
    forward = recorded(lambda: (w * 2).sum())
    assert forward.verify().verdict == "not checked"
    assert head(forward.verify().document())[0] == "not checked"
