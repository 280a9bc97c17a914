import random
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

from tests.checks import FlippedSign, Square, caught, no_alarm, proved, recorded, rows, verify
from tests.steps import spoil_rule


@pytest.fixture(autouse=True)
def _repeatable():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- the checker is checked: wrong backwards --------------------------------------------------------------------------


class OnePercent(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g * 1.01


class MissingTerm(Function):
    """y = x sin(x), whose derivative is sin(x) + x cos(x)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.sin()


class StaleOperand(Function):
    """y = exp(x), but the operand that backward uses is not the one that forward used."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x + 0.25)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.exp()


@pytest.mark.parametrize("shape", [(3, 4), (40, 50)], ids=["each element", "directions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [FlippedSign, OnePercent, MissingTerm, StaleOperand])
def test_a_wrong_backward_is_caught_at_its_node_and_nowhere_else(function, shape, dtype):
    layer = nn.Linear(shape[1], shape[1]).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    row = caught(proved(lambda: function.apply(layer(x)).tanh().mean().backward()), function.__name__ + "Backward")
    assert row.place.file == __file__
    assert row.wrong
    wrong = row.wrong[0]
    assert wrong.autograd != pytest.approx(wrong.finite, rel=1e-3)
    assert row.finite_difference.largest > row.finite_difference.tolerance


class WithoutTranspose(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, x.t() @ g


@pytest.mark.parametrize("size", [3, 20])
def test_a_missing_transpose_is_caught_where_the_shape_is_legal(size):
    x, weight = torch.randn(size, size), torch.randn(size, size, requires_grad=True)
    row = caught(
        proved(lambda: WithoutTranspose.apply((x @ weight).relu(), weight).sigmoid().sum().backward()),
        "WithoutTransposeBackward",
    )
    assert {wrong.argument for wrong in row.wrong} == {"x"}


class WithoutSum(Function):
    """y = x + b with b of one row; its gradient is the sum over the rows, but backward hands on the first row."""

    @staticmethod
    def forward(ctx, x, b):
        return x + b

    @staticmethod
    def backward(ctx, g):
        return g, g[:1]


def test_a_missing_sum_over_a_broadcast_axis_is_caught():
    x, b = torch.randn(4, 3), torch.randn(1, 3, requires_grad=True)
    row = caught(proved(lambda: WithoutSum.apply(x, b).square().sum().backward()), "WithoutSumBackward")
    assert {wrong.argument for wrong in row.wrong} == {"b"}


class WithoutGradient(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, g):
        _, scale = ctx.saved_tensors
        return g * scale, None


def test_a_gradient_that_never_comes_is_caught():
    x, scale = torch.randn(4, requires_grad=True), torch.tensor([2.0], requires_grad=True)
    row = caught(proved(lambda: WithoutGradient.apply(x, scale).sum().backward()), "WithoutGradientBackward")
    assert "no gradient came back" in row.reason
    assert row.wrong[0].autograd is None
    assert row.wrong[0].finite == pytest.approx(float(x.detach().sum()), rel=1e-4)


def test_a_gradient_that_was_not_asked_for_is_no_alarm():
    x, y = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    no_alarm(proved(lambda: (x * y).sum().backward(inputs=[x])), unchecked=True)
    no_alarm(proved(lambda: torch.autograd.grad((x * y).sum(), [x])), unchecked=True)


# -- the checker is checked: wrong rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (30, 40)])
def test_a_rule_that_is_wrong_by_2_001_for_2_is_caught(monkeypatch, shape):
    spoil_rule(monkeypatch, "PowBackward0", lambda op, g: 2.001 * op.self * g)
    x = torch.randn(shape, requires_grad=True)
    row = caught(proved(lambda: (x.sin() ** 2).mean().backward()), "PowBackward0")
    assert "our rule is wrong" in row.reason
    assert row.rule_difference.largest > row.rule_difference.tolerance
    assert row.finite_difference.largest <= row.finite_difference.tolerance
    assert row.wrong[0].rule == pytest.approx(row.wrong[0].autograd * 2.001 / 2, rel=1e-5)


def test_a_rule_that_breaks_is_a_result_and_no_crash(monkeypatch):
    spoil_rule(monkeypatch, "TanhBackward0", lambda op, g: g[0] / 0)
    x = torch.randn(3, requires_grad=True)
    row = caught(proved(lambda: x.tanh().sum().backward()), "TanhBackward0")
    assert "our rule" in row.reason


# -- no false alarm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_mlp(dtype):
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 5)).to(dtype)
    x, y = torch.randn(16, 20, dtype=dtype), torch.randint(5, (16,))
    no_alarm(proved(lambda: F.cross_entropy(model(x), y).backward()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_layer_norm_softmax_and_cross_entropy(dtype):
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 6), nn.Softmax(-1)).to(dtype)
    x, y = torch.randn(5, 8, dtype=dtype), torch.randint(6, (5,))
    no_alarm(proved(lambda: F.cross_entropy(model(x), y).backward()))


def test_embedding_and_index():
    table = nn.Embedding(10, 12)
    tokens = torch.tensor([[1, 2, 2], [0, 9, 1]])
    no_alarm(proved(lambda: table(tokens)[:, torch.tensor([0, 2])].square().mean().backward()))


def test_dropout_and_a_fused_one():
    layer = nn.Linear(6, 30)
    x = torch.randn(7, 6)
    no_alarm(proved(lambda: F.dropout(layer(x), 0.4).square().sum().backward()))
    no_alarm(proved(lambda: torch.native_dropout(layer(x), 0.4, True)[0].square().sum().backward()))
    no_alarm(proved(lambda: F.rrelu(layer(x), training=True).square().sum().backward()))


def test_writing_in_place():
    layer = nn.Linear(6, 30)
    x = torch.randn(7, 6)
    no_alarm(proved(lambda: layer(x).relu_().mul(2).add_(1).square().mean().backward()))


def test_a_write_to_a_part_raises_no_alarm():
    x = torch.randn(4, 3, requires_grad=True)

    def step():
        y = x * 2
        y[0].mul_(3)
        y[1] = 0
        y.square().sum().backward()

    no_alarm(proved(step), unchecked=True)


def test_batch_norm_in_training_and_a_bias_before_it():
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Linear(40, 1))
    x = torch.randn(32, 6)
    before = [b.clone() for b in model.buffers()]
    graph = recorded(lambda: model(x).square().mean().backward())
    after = [b.clone() for b in model.buffers()]
    no_alarm(verify(graph))
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(old, new) for old, new in zip(after, model.buffers(), strict=True))


def test_a_convolution_with_pooling():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(3, 2, 8, 8)
    no_alarm(proved(lambda: model(x).logsumexp(1).mean().backward()))


def test_attention_with_a_mask():
    layer = nn.Linear(8, 24)
    x = torch.randn(2, 5, 8)
    mask = torch.full((5, 5), float("-inf")).triu(1)

    def by_hand():
        q, k, v = layer(x).chunk(3, -1)
        ((q @ k.transpose(1, 2) + mask).softmax(-1) @ v).square().mean().backward()

    def fused():
        q, k, v = layer(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        F.scaled_dot_product_attention(q, k, v, is_causal=True).square().mean().backward()

    no_alarm(proved(by_hand))
    no_alarm(proved(fused))


def test_complex_numbers():
    z = torch.randn(5, dtype=torch.complex64, requires_grad=True)
    w = torch.randn(5, requires_grad=True)
    no_alarm(proved(lambda: ((z * w).exp() * z).abs().square().sum().backward()))


def test_many_outputs_of_which_some_are_not_used():
    x = torch.randn(6, 4, requires_grad=True)
    no_alarm(proved(lambda: x.split(2)[1].square().sum().backward()))
    no_alarm(proved(lambda: (x.max(1).values.sum() + x.sort(0).values[0].sum()).backward()))


def test_saturated_functions_in_float32_are_mere_rounding():
    x = torch.tensor([-30.0, -15.0, 15.0, 17.5, 40.0], requires_grad=True)
    no_alarm(proved(lambda: (x.sigmoid().sum() + x.tanh().sum()).backward()))


def test_changes_below_the_rounding_of_the_output_are_no_alarm():
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([-8.0, -5.5, 5.5, 8.0], dtype=dtype, requires_grad=True)
        no_alarm(proved(lambda x=x: (torch.erfc(x).sum() + torch.logsumexp(20 * x, 0)).backward()))


def test_scales_far_from_one():
    for scale in (1e-6, 1e6):
        x = (torch.rand(40, 3) * scale).requires_grad_()
        no_alarm(proved(lambda x=x: (x.log().sum() + x.sqrt().sum() + (1 / x).sum()).backward()))


def test_mixed_number_types():
    layer = nn.Linear(6, 30)
    x = torch.randn(7, 6)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x).relu()
        out.float().square().mean().backward()

    no_alarm(proved(step))


def test_a_users_function_that_is_right_or_computes_in_coarser_numbers():
    class Coarse(Square):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.float().square().to(x.dtype)

    for function in (Square, Coarse):
        for shape in ((3,), (30, 40)):
            x = torch.randn(shape, requires_grad=True)
            verification = proved(lambda x=x, function=function: function.apply(x).sum().backward())
            no_alarm(verification)
            assert rows(verification, function.__name__ + "Backward")[0].verdict == "agrees"


def test_several_backward_passes_and_accumulation():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)

    def step():
        layer(x).square().mean().backward()
        layer(x + 1).square().mean().backward()

    no_alarm(proved(step))


def test_a_gradient_from_before_the_step_is_part_of_what_a_leaf_holds():
    x = torch.randn(3, requires_grad=True)
    x.grad = torch.ones(3)
    (row,) = rows(proved(lambda: x.sin().sum().backward()), "AccumulateGrad")
    assert row.verdict == "agrees"
    assert "there before" in row.reason

    def step():
        x.sin().sum().backward()
        x.grad *= 1.01
        x.cos().sum().backward()

    (row,) = rows(proved(step), "AccumulateGrad")
    assert row.verdict == "not checked"
    assert "something wrote to it" in row.reason


def test_the_contributions_of_all_uses_add_up_at_a_leaf():
    x = torch.randn(3, requires_grad=True)
    row = rows(proved(lambda: (x.exp() * x + x.sin()).sum().backward()), "AccumulateGrad")[0]
    assert row.verdict == "agrees"
    assert "3 uses" in row.reason
    graph = recorded(lambda: (x.exp() * x).sum().backward())
    values = tuple(
        replace(v, gradient=v.gradient.filled(v.grad + 0.01)) if v.kind == "parameter" else v for v in graph.values
    )
    caught(verify(replace(graph, values=values)), "AccumulateGrad")


def test_a_hook_that_changes_a_leafs_gradient_is_no_fault_of_the_node():
    x = torch.randn(3, requires_grad=True)
    x.register_hook(lambda g: g * 2)
    verification = proved(lambda: x.exp().sum().backward())
    assert [row.own for row in verification.unchecked] == ["hook"]
    assert not verification.failures
    assert rows(verification, "ExpBackward0")[0].verdict == "agrees"
    assert "a hook on `x` changed its gradient: " in rows(verification, "AccumulateGrad")[0].reason


def test_a_hook_of_a_module_that_takes_a_leaf_is_no_fault_of_a_node():
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    layer.register_full_backward_hook(lambda module, sent, arrived: tuple(2 * each for each in sent))
    verification = proved(lambda: layer(x).exp().sum().backward())
    assert not verification.failures
    assert [row.own for row in verification.unchecked] == ["hook"]


# -- kinks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.abs,
        lambda x: x.clamp(0, 2),
        lambda x: F.leaky_relu(x, 0.1),
        lambda x: torch.maximum(x, torch.zeros(())),
        lambda x: x.max() + x.amax(),
    ],
)
@pytest.mark.parametrize("count", [1, 40])
def test_a_point_on_a_kink_is_named_and_is_no_alarm(function, count):
    x = torch.tensor([-1.5, 0.0, 0.5, 2.0, 2.0]).repeat(count).requires_grad_()
    verification = proved(lambda: function(x).square().sum().backward())
    no_alarm(verification)
    row = next(row for row in verification.rows if row.verdict == "by convention")
    assert row.conventions[0].indices
    assert row.conventions[0].choice


class Hinge(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class SevenAtKink(Hinge):
    @staticmethod
    def backward(ctx, g):
        return torch.where(ctx.saved_tensors[0] == 0, 7.0, Hinge.backward(ctx, g))


@pytest.mark.parametrize("count", [1, 300])
def test_a_kink_that_no_rule_knows_is_found_by_one_sided_differences(count):
    x = torch.tensor([-1.5, 0.0, 0.5, 1e-7]).repeat(count).requires_grad_()
    row = rows(proved(lambda: Hinge.apply(x).sum().backward()), "HingeBackward")[0]
    assert row.verdict == "by convention"
    assert row.conventions[0].indices[0] == (1,)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_kink_far_from_0_is_found_too(factor):
    class Largest(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, x.amax(-1, keepdim=True))
            return x.amax(-1)

        @staticmethod
        def backward(ctx, g):
            x, largest = ctx.saved_tensors
            return factor * g[:, None] * (x == largest)

    x = torch.tensor([[0.1, -0.2, 0.3, 2.0, 2.0], [0.5, 0.1, -1.0, 0.2, -0.3]], requires_grad=True)
    row = rows(proved(lambda: Largest.apply(1.0 * x).sum().backward()), "LargestBackward")[0]
    assert row.verdict == ("by convention" if factor == 1 else "disagrees"), row.reason


@pytest.mark.parametrize("count", [1, 100])
def test_a_wrong_choice_at_a_kink_is_no_excuse(count):
    x = torch.tensor([-1.5, 0.0, 0.5]).repeat(count).requires_grad_()
    row = caught(proved(lambda: SevenAtKink.apply(x).sum().backward()), "SevenAtKinkBackward")
    assert row.wrong[0].index == (1,)


# -- what cannot be checked -------------------------------------------------------------------------------------------


def test_a_function_that_draws_where_no_state_is_known_is_not_checked():
    class Noise(Function):
        @staticmethod
        def forward(ctx, x):
            return x * random.random()

        @staticmethod
        def backward(ctx, g):
            return g

    x = torch.randn(3, requires_grad=True)
    row = rows(proved(lambda: Noise.apply(x).sum().backward()), "NoiseBackward")[0]
    assert row.verdict == "not checked"
    assert "random" in row.reason


def test_a_function_that_cannot_run_again_is_not_checked():
    class Once(Square):
        ran = False

        @staticmethod
        def forward(ctx, x):
            assert not Once.ran, "once only"
            Once.ran = True
            return Square.forward(ctx, x)

    x = torch.randn(3, requires_grad=True)
    row = rows(proved(lambda: Once.apply(x).sum().backward()), "OnceBackward")[0]
    assert row.verdict == "not checked"
    assert "AssertionError: once only" in row.reason


def test_what_has_no_free_elements_or_no_derivative_is_said():
    a = torch.eye(3).mul(2).requires_grad_()
    row = rows(proved(lambda: torch.linalg.cholesky(a).sum().backward()), "LinalgCholeskyExBackward0")[0]
    assert row.verdict == "agrees"
    assert row.reason.startswith("our rule and autograd agree; no central difference was taken")
    assert "symmetric" in row.reason
    mean = torch.zeros(3, requires_grad=True)
    row = rows(proved(lambda: torch.normal(mean, 1.0).sum().backward()), "NormalBackward1")[0]
    assert "drawn" in row.reason


def test_values_that_are_not_finite_are_said_and_do_not_crash():
    x = torch.tensor([0.0, 1.0, float("nan"), float("inf")], requires_grad=True)
    verification = proved(lambda: (x.log() * 2).sum().backward())
    assert not verification.failures
    assert "not checked" in {row.verdict for row in verification.rows}
    y = torch.tensor([-1.0, 1.0], requires_grad=True)
    verification = proved(lambda: (y.exp() * float("inf")).sum().backward())
    assert not verification.failures
    assert "not finite" in rows(verification, "ExpBackward0")[0].reason


def test_nothing_flowed_and_nothing_there():
    x = torch.randn(3, requires_grad=True)

    def step():
        x.exp()
        x.sin().sum().backward()

    row = rows(proved(step), "ExpBackward0")
    assert all(each.verdict == "not checked" and "no gradient flowed" in each.reason for each in row)
    empty = torch.randn(0, 3, requires_grad=True)
    assert proved(lambda: empty.exp().sum().backward()).passed


def test_a_forward_pass_alone_gives_rows_that_say_so():
    x = torch.randn(3, requires_grad=True)
    verification = proved(lambda: x.exp().sum())
    assert not verification.passed
    assert verification.verdict == "not checked"
    assert {row.verdict for row in verification.rows} <= {"not checked"}


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hook_of_an_optimizer_is_named_where_a_parameter_is_not_what_the_formula_gives(kind):
    layer = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    @torch.no_grad()
    def shrink(optimizer, args, kwargs):
        layer.weight.mul_(0.5)

    getattr(optimizer, f"register_step_{kind}_hook")(shrink)

    def step():
        layer(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()

    changed, kept = proved(step).updates
    assert (changed.verdict, kept.verdict) == ("disagrees", "agrees")
    assert re.search(r"formula of SGD gives; shrink \(test_verify\.py:\d+\), hooked on the step", changed.reason)
