"""`chainrule.verify(fn)` under the conditions that users' code meets: wrong functions for each, and right ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import chainrule


def function(forward, backward, materialize=True):
    """An autograd.Function that saves its inputs; `backward` gets ctx, the upstream gradients, and what was saved."""

    def run(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(materialize)
        return forward(*inputs)

    def back(ctx, *upstream):
        return backward(ctx, *upstream, *ctx.saved_tensors)

    return type("Tried", (Function,), {"forward": staticmethod(run), "backward": staticmethod(back)})


def sine(backward):
    return function(torch.sin, lambda ctx, g, x: backward(g, x))


def product(backward):
    return function(torch.mul, backward)


def both(x):
    return x.sin(), x.cos()


def row_of(function, *inputs, **options):
    (row,) = chainrule.verify(function, *inputs, **options).failures
    return row


def factor(wrong):
    return 2 if wrong else 1


X = torch.linspace(-1.3, 2.1, 12).reshape(3, 4)


@pytest.mark.parametrize(
    ("wrong", "condition"),
    [
        (lambda g, x: g * x.cos() * factor(0 in g.stride()), "with an expanded upstream gradient"),
        (lambda g, x: g * x.cos() * factor(not g.is_contiguous()), "with an upstream gradient that is not contiguous"),
        (
            lambda g, x: (g.view(-1) * x.cos().view(-1)).view(g.shape),
            "with an upstream gradient that is not contiguous",
        ),
        (lambda g, x: g * x.cos() * factor(not x.is_contiguous()), "with inputs that are not contiguous"),
        (lambda g, x: g.clamp(-2.5, 2.5) * x.cos(), "with another upstream gradient"),
        (lambda g, x: g * x.cos() * factor(x[0, 0] != X[0, 0]), "at a second point"),
    ],
)
def test_a_backward_that_is_wrong_under_one_condition_alone(wrong, condition):
    row = row_of(sine(wrong), X)
    assert condition in row.reason
    assert (row.node.name, row.place.file) == ("TriedBackward", __file__)


def test_an_error_in_backward_is_a_failure_of_its_condition_and_one_in_forward_is_none():
    def crash(g, x):
        if not g.is_contiguous():
            raise ValueError("strides!")
        return g * x.cos()

    row = row_of(sine(crash), X)
    assert "its backward raises ValueError: strides!" in row.reason

    def refusing(x):
        if not x.is_contiguous():
            raise ValueError("strides!")
        return x.sin()

    verification = chainrule.verify(function(refusing, lambda ctx, g, x: g * x.cos()), X)
    assert verification.passed
    assert "inputs that are not contiguous" not in verification.tried


@pytest.mark.parametrize("given", [X.t(), X[:, ::2], X[:, 1:3], X[:, :1].expand(3, 4)])
def test_inputs_keep_the_layout_that_they_were_given(given):
    row = row_of(sine(lambda g, x: g * x.cos() * factor(x.stride() == given.stride())), given)
    assert row.reason.startswith("with inputs as given, which are not contiguous: ")
    assert [repair.kind for repair in row.repairs] == ["layout"]
    assert "`input0` is not contiguous: with a contiguous copy it agrees" in row.repairs[0].text
    assert chainrule.verify(sine(lambda g, x: g * x.cos()), given).passed


@pytest.mark.parametrize(
    ("backward", "condition", "said"),
    [
        (
            lambda ctx, g, x, y: (g * y, g * x) if all(ctx.needs_input_grad) else (g, g),
            "where only input 0 requires a gradient and where only input 1 requires a gradient",
            "is not the derivative",
        ),
        (
            lambda ctx, g, x, y: (g * y if ctx.needs_input_grad[1] else None, g * x),
            "where only input 0 requires a gradient",
            "no gradient came back",
        ),
    ],
)
def test_a_backward_that_misuses_needs_input_grad(backward, condition, said):
    row = row_of(product(backward), X, X.cos())
    assert row.reason.startswith(condition)
    assert said in row.reason


def test_results_without_an_upstream_gradient():
    def one_alone(ctx, g, h, x):
        if h is None:
            return 2 * g * x.cos()
        return (0 if g is None else g * x.cos()) - h * x.sin()

    row = row_of(function(both, one_alone, materialize=False), X)
    assert row.reason.startswith("where only result 0 gets a gradient: ")
    assert "output 1 got no upstream gradient (None): with zeros in its place it agrees" in row.repairs[0].text

    row = row_of(function(both, lambda ctx, g, h, x: g * x.cos() - h * x.sin(), materialize=False), X)
    assert row.reason.startswith("where only result 0 gets a gradient and where only result 1 gets a gradient: ")
    assert "its backward raises TypeError" in row.reason
    assert "where" not in row_of(function(both, lambda ctx, g, h, x: g * x.cos()), X).reason
    assert chainrule.verify(function(both, lambda ctx, g, h, x: g * x.cos() - h * x.sin()), X).passed


def test_the_upstream_gradient_of_a_complex_result_is_complex():
    z = torch.complex(X, X.cos())
    right = function(torch.fft.fft, lambda ctx, g, z: torch.fft.ifft(g) * z.shape[-1])
    assert chainrule.verify(right, z).passed
    assert not chainrule.verify(function(torch.fft.fft, lambda ctx, g, z: torch.fft.ifft(g.conj()) * 4), z).passed


def test_points_with_other_signs_where_the_function_has_values():
    wrong = function(lambda x: x * x.abs(), lambda ctx, g, x: 2 * g * x)
    assert row_of(wrong, X.abs() + 0.1).reason.startswith("at a point with other signs: ")
    verification = chainrule.verify(function(torch.log, lambda ctx, g, x: g / x), X.abs() + 0.1)
    assert verification.passed
    assert "other signs" not in verification.tried


def test_what_was_tried_is_printed_and_a_large_function_is_tried_as_given():
    assert "Note: Tried: as given; with inputs that are not contiguous; " in str(chainrule.verify(torch.sin, X))
    assert chainrule.verify(torch.sin, torch.randn(600, 600)).tried.startswith("Tried: as given alone, as the ")
    wrong = sine(lambda g, x: g * x.cos() * factor(0 in g.stride()))
    assert "Backward 1, Tried, with an expanded upstream gradient (as sum() gives)" in str(
        list(chainrule.verify(wrong, X).names.values())
    )


def test_each_run_begins_as_the_first_and_leaves_nothing():
    seen, model = [], nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    counter = torch.zeros(())

    def counted(x):
        seen.append((len(seen), float(counter), float(torch.rand(())), float(model[1].num_batches_tracked)))
        counter.add_(1)
        return model(x)

    records = seen.copy
    assert chainrule.verify(counted, X).passed
    assert (records(), float(counter), float(model[1].num_batches_tracked)) == ([], 0.0, 0.0)


def test_a_backward_that_writes_to_an_expanded_upstream_gradient_raises_and_this_is_said():
    verification = chainrule.verify(function(lambda x: 2 * x, lambda ctx, g, x: g.mul_(2)), X)
    assert not any("RuntimeError" in row.reason for row in verification.rows)
    if verification.passed:
        assert (
            "Left out: with an expanded upstream gradient (as `sum()` gives), which its backward" in verification.tried
        )


# -- second derivatives -----------------------------------------------------------------------------------------------


class OnContext(Function):
    """Its second derivative is 0 for autograd, which does not see what is kept on ctx."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = x.cos()
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class MinusCosine(Function):
    """Its own derivative has the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].sin()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (OnContext, "no gradient came back for `x`"),
        (sine(lambda g, x: g * MinusCosine.apply(x)), "the gradient of `input_0` is not the derivative"),
        (sine(lambda g, x: g * x.detach().cos()), "no gradient came back"),
    ],
)
def test_a_wrong_second_derivative(wrong, said):
    assert chainrule.verify(wrong, X).passed
    row = row_of(wrong, X, order=2)
    assert row.node.name.endswith(", second derivative")
    assert said in row.reason


@pytest.mark.parametrize(
    "right",
    [
        sine(lambda g, x: g * x.cos()),
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5)),
        lambda x: (x.exp(), (x * x).sum()),
        lambda x: 2 * x,
    ],
)
def test_a_right_second_derivative(right):
    verification = chainrule.verify(right, X, order=2)
    assert verification.passed
    assert verification.tried.endswith("; its second derivative.")


def test_a_backward_that_refuses_to_be_differentiated_is_not_proved():
    class Once(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    verification = chainrule.verify(Once, X, order=2)
    assert (verification.passed, verification.failures) == (False, ())
    assert "@once_differentiable" in verification.unchecked[0].reason
    with pytest.raises(chainrule.ChainruleError, match="order=3 is not supported"):
        chainrule.verify(torch.sin, X, order=3)


# -- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_under_another_default_type(dtype):
    torch.set_default_dtype(dtype)
    try:
        assert chainrule.verify(sine(lambda g, x: g * x.cos()), X, order=2).passed
        assert not chainrule.verify(sine(lambda g, x: -g * x.cos()), X).passed
    finally:
        torch.set_default_dtype(torch.float32)


def test_under_the_default_device_meta():
    with torch.device("meta"):
        assert chainrule.verify(sine(lambda g, x: g * x.cos()), X, order=2).passed
        assert not chainrule.verify(sine(lambda g, x: -g * x.cos()), X).passed
        with pytest.raises(chainrule.ChainruleError, match="the device meta, which holds no numbers"):
            chainrule.verify(torch.sin, torch.randn(3))


# -- what changed a gradient in a step --------------------------------------------------------------------------------


def rows_of(step):
    with chainrule.record() as recording:
        step()
    return {row.node.name: row for row in reversed(recording.verify().rows)}


U = torch.tensor([1.0, 2.0, 3.0])


def test_a_hook_is_said_with_its_numbers_and_no_backward_is_blamed():
    right, x = sine(lambda g, x: g * x.cos()), torch.zeros(3, requires_grad=True)

    def on_tensor():
        y = right.apply(x * 1)
        y.register_hook(lambda g: g * 10)
        (y * U).sum().backward()

    row = rows_of(on_tensor)["TriedBackward"]
    assert row.verdict == "not checked"
    assert "a hook on `y` changed its gradient from [1, 2, 3] to [10, 20, 30]" in row.reason

    def on_module():
        model = nn.Sequential(nn.Tanh())
        model.register_full_backward_hook(lambda module, sent, arrived: tuple(g * 10 for g in sent))
        (model(x * 1) * U).sum().backward()

    row = rows_of(on_module)["BackwardHookFunctionBackward"]
    assert (row.verdict, row.repairs) == ("not checked", ())
    assert "from [1, 2, 3] to [10, 20, 30]" in row.reason

    def halve(leaf):
        leaf.grad.mul_(0.5)

    def afterwards():
        leaf = torch.zeros(3, requires_grad=True)
        leaf.register_post_accumulate_grad_hook(halve)
        (right.apply(leaf) * U).sum().backward()

    assert "[1, 2, 3] was sent to it, and `.grad` holds [0.5, 1, 1.5]" in rows_of(afterwards)["AccumulateGrad"].reason

    def harmless():
        hidden = x * 1
        y = right.apply(hidden)
        hidden.retain_grad()
        y.retain_grad()
        loss = (y * U).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    x.grad = None
    assert {row.verdict for row in rows_of(harmless).values()} == {"agrees"}


@pytest.mark.parametrize(
    ("wrong", "step", "kind", "said"),
    [
        (
            lambda ctx, g, x: g * x.cos() * factor(not x.is_contiguous()),
            lambda f, x: (f(x[:, ::2]) * X[:, :2]).sum(),
            "layout",
            "`input0` is not contiguous: with a contiguous copy it agrees",
        ),
        (
            lambda ctx, g, x: g * x.cos() * factor(not g.is_contiguous()),
            lambda f, x: f(x).sum(),
            "layout",
            "the upstream gradient is expanded: with a contiguous copy it agrees",
        ),
    ],
)
def test_a_layout_is_no_overwriting(wrong, step, kind, said):
    row = rows_of(lambda: step(function(torch.sin, wrong).apply, X.clone().requires_grad_()).backward())[
        "TriedBackward"
    ]
    assert [(repair.kind, said in repair.text) for repair in row.repairs] == [(kind, True)]


def test_a_forward_pass_outside_the_block():
    hidden = nn.Linear(4, 2)(X)
    with chainrule.record() as recording:
        hidden.square().sum().backward()
    reasons = {row.node.name: row.reason for row in recording.verify().rows if row.verdict == "not checked"}
    assert set(reasons) == {"AccumulateGrad", "AddmmBackward0", "TBackward0"}
    assert set(reasons.values()) == {"its forward ran before the block began, or in another thread: put it inside"}


# -- right functions of PyTorch's -------------------------------------------------------------------------------------


def drawn(*shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(sum(10**i * size for i, size in enumerate(shape)))
    )


A, B, C, IMAGE, CLASSES = drawn(3, 4), drawn(4, 3).t(), drawn(3, 5), drawn(1, 2, 4, 4), torch.tensor([0, 1, 2])
POSITIVE, SIGNS = A.sigmoid() * 0.8 + 0.1, torch.tensor([1, -1, 1])
NO_SECOND = {"hardsigmoid", "multi_margin_loss", "ctc_loss", "embedding_bag"}  # PyTorch has no formula
RIGHT = [
    *((each, A) for each in (
        F.relu, F.gelu, F.silu, F.elu, F.selu, F.celu, F.leaky_relu, F.softplus, F.softsign, F.tanhshrink, F.hardtanh,
        F.hardswish, F.hardsigmoid, F.mish, F.logsigmoid, F.relu6, F.softshrink, F.hardshrink, F.glu, F.normalize,
        F.gumbel_softmax, F.dropout,
    )),
    *((each, A, -1) for each in (F.softmax, F.log_softmax, F.softmin)),
    *((each, A, B) for each in (
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.cosine_similarity, F.pairwise_distance
    )),
    *((each, A, POSITIVE) for each in (F.binary_cross_entropy_with_logits, F.poisson_nll_loss)),
    *((each, drawn(3), SIGNS) for each in (F.hinge_embedding_loss, F.soft_margin_loss)),
    *((each, A, CLASSES) for each in (F.cross_entropy, F.multi_margin_loss)),
    (F.threshold, A, 0.1, 0.0), (F.prelu, A, drawn(1).abs()), (F.instance_norm, drawn(2, 3, 5)),
    (F.layer_norm, A, (4,), drawn(4), B[0]), (F.rms_norm, A, (4,), drawn(4)),
    (F.group_norm, drawn(2, 4, 3), 2, drawn(4), B[0]), (F.batch_norm, C, None, None, drawn(5), C[0], True),
    (F.local_response_norm, drawn(2, 4, 3), 2), (F.linear, A, drawn(5, 4), drawn(5)),
    (F.bilinear, A, drawn(3, 2), drawn(5, 4, 2)), (F.conv1d, drawn(2, 3, 6), drawn(4, 3, 3), drawn(4)),
    (F.conv2d, IMAGE, drawn(3, 2, 3, 3)), (F.conv_transpose1d, drawn(1, 2, 5), drawn(2, 3, 3)),
    (F.max_pool2d, IMAGE, 2), (F.avg_pool2d, IMAGE, 2), (F.adaptive_avg_pool2d, IMAGE, 3),
    (F.interpolate, IMAGE, None, 2.0, "nearest"), (F.pixel_shuffle, drawn(1, 4, 2, 2), 2), (F.unfold, IMAGE, 2),
    (F.fold, drawn(1, 8, 9), (4, 4), 2), (F.pad, drawn(1, 2, 3), (1, 1), "reflect"),
    (F.nll_loss, A.log_softmax(-1), CLASSES), (F.binary_cross_entropy, POSITIVE, B.sigmoid()),
    (F.kl_div, A.log_softmax(-1), POSITIVE, None, None, "sum"), (F.gaussian_nll_loss, A, B, POSITIVE),
    (F.triplet_margin_loss, A, B, POSITIVE), (F.margin_ranking_loss, drawn(3), C[:, 0], SIGNS),
    (F.cosine_embedding_loss, A, B, SIGNS), (F.multilabel_soft_margin_loss, A, POSITIVE),
    (F.ctc_loss, drawn(6, 2, 4).log_softmax(-1), torch.tensor([[1, 2], [2, 3]]), [6, 6], [2, 2]),
    (F.embedding, CLASSES, A), (F.embedding_bag, CLASSES[None], A),
    (F.scaled_dot_product_attention, drawn(2, 5, 4), drawn(2, 4, 5).mT, drawn(2, 5, 3)),
    (torch.acosh, A.abs() + 1.1), (torch.asin, POSITIVE), (torch.pow, POSITIVE, B), (torch.lgamma, POSITIVE),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case[0].__name__)
def test_functions_of_pytorch_pass_under_all_conditions(case, order):
    verification = chainrule.verify(*case, order=order)
    assert not verification.failures
    if order == 1 or case[0].__name__ not in NO_SECOND:
        assert verification.passed
    assert verification.tried.count(";") >= 3
