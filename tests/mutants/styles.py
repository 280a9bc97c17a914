"""Backward functions in other styles: `setup_context`, `vmap`, custom operators. See `sources`."""

from __future__ import annotations

from tests.mutants.sources import Source

STYLES = (
    Source(
        "softplus setup",
        "r(n,d)",
        """
class Own(Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(x, beta):
        return torch.log1p(torch.exp(beta * x)) / beta
    @staticmethod
    def setup_context(ctx, inputs, output):
        x, beta = inputs
        ctx.save_for_backward(x)
        ctx.beta = beta
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return g * torch.sigmoid(ctx.beta * x), None
_a = Own.apply
class Own:
    apply = staticmethod(lambda x: torch.vmap(lambda r: _a(r, 1.7))(x))
""",
        (
            ("torch.sigmoid(ctx.beta * x)", "torch.sigmoid(x)", "missing factor|factor"),
            ("g * torch.sigmoid(ctx.beta * x)", "torch.sigmoid(ctx.beta * x)", "missing factor: .*upstream"),
            ("g * torch.sigmoid(ctx.beta * x)", "g * torch.sigmoid(ctx.beta * x) * ctx.beta", "factor|extra"),
            ("torch.sigmoid(ctx.beta * x)", "torch.tanh(ctx.beta * x)", "wrong function"),
        ),
    ),
    Source(
        "norm setup vmap",
        "r(n,d), r(n,d)",
        """
class Own(Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(a, b):
        na, nb = a.norm(), b.norm()
        return (a * b).sum() / (na * nb), na, nb
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1], output[2])
    @staticmethod
    def backward(ctx, g, _na, _nb):
        a, b, cos, na, nb = ctx.saved_tensors
        ga = g * (b / (na * nb) - cos * a / na ** 2)
        gb = g * (a / (na * nb) - cos * b / nb ** 2)
        return ga, gb
_a = Own.apply
class Own:
    apply = staticmethod(lambda a, b: torch.vmap(_a)(a, b)[0])
""",
        (
            ("cos * a / na ** 2", "cos * a / na", "missing|wrong number|operator|extra"),
            ("(b / (na * nb) - cos * a / na ** 2)", "b / (na * nb)", "missing term"),
            ("cos * b / nb ** 2", "cos * a / nb ** 2", "wrong operand"),
            ("gb = g * (a", "gb = (a", "missing factor: .*upstream"),
        ),
    ),
    Source(
        "custom op scale",
        "r(n,d), r(d)",
        """
@torch.library.custom_op("chainrule_mutants::affine{N}", mutates_args=())
def affine(x: Tensor, w: Tensor, s: float) -> Tensor:
    return (x * w + s).sigmoid()
def _setup(ctx, inputs, output):
    x, w, s = inputs
    ctx.save_for_backward(x, w, output)
def _back(ctx, g):
    x, w, y = ctx.saved_tensors
    d = g * y * (1 - y)
    return d * w, (d * x).sum(0), None
affine.register_autograd(_back, setup_context=_setup)
class Own:
    apply = staticmethod(lambda x, w: affine(x, w, 0.3))
""",
        (
            ("d * w, (d * x).sum(0)", "d * w, (d * x).mean(0)", "1/N|reduction"),
            ("g * y * (1 - y)", "g * y", "missing factor"),
            ("return d * w,", "return d,", "missing factor"),
            ("g * y * (1 - y)", "y * (1 - y)", "missing factor: .*upstream"),
            ("(1 - y)", "(1 - x)", "wrong operand"),
        ),
    ),
    Source(
        "custom op two outs",
        "r(n,d)",
        """
@torch.library.custom_op("chainrule_mutants::meanvar{N}", mutates_args=())
def meanvar(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(1), x.var(1, unbiased=False)
def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output[0])
def _back(ctx, gm, gv):
    x, m = ctx.saved_tensors
    n = x.shape[1]
    return gm[:, None] / n + 2 * gv[:, None] * (x - m[:, None]) / n
meanvar.register_autograd(_back, setup_context=_setup)
class Own:
    apply = staticmethod(lambda x: meanvar(x))
""",
        (
            ("gm[:, None] / n +", "gm[:, None] +", "missing|1/N|operator|factor|number|extra"),
            ("(x - m[:, None])", "x", "missing term"),
            ("2 * gv", "gv", "factor|missing|number"),
            (" / n + 2", " / (n - 1) + 2", "wrong number|number|shifted"),
        ),
    ),
    Source(
        "isru setup",
        "r(n,d)",
        """
class Own(Function):
    @staticmethod
    def forward(x, alpha=3.0):
        return x / torch.sqrt(1 + alpha * x * x)
    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *_ = inputs
        ctx.save_for_backward(x)
        ctx.alpha = 3.0
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        r = torch.rsqrt(1 + ctx.alpha * x * x)
        return g * r ** 3, None
""",
        (
            ("g * r ** 3", "r ** 3", "missing factor: .*upstream"),
            ("g * r ** 3", "g * r ** 2", "wrong number|missing factor|factor|operator"),
        ),
    ),
    Source(
        "snake vmap",
        "r(n,d)",
        """
class Own(Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(x):
        return x + torch.sin(2.5 * x) ** 2 / 2.5
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return g * (1 + torch.sin(5.0 * x))
""",
        (
            ("torch.sin(5.0 * x)", "torch.sin(2.5 * x)", "wrong number|factor"),
            ("(1 + torch.sin(5.0 * x))", "torch.sin(5.0 * x)", "missing term"),
        ),
    ),
    Source(
        "custom op squareplus",
        "r(n,d)",
        """
@torch.library.custom_op("chainrule_mutants::squareplus{N}", mutates_args=())
def op(x: torch.Tensor, b: float) -> torch.Tensor:
    return 0.5 * (x + torch.sqrt(x * x + b))
def setup(ctx, inputs, output):
    x, b = inputs
    ctx.save_for_backward(x)
    ctx.b = b
def back(ctx, g):
    x, = ctx.saved_tensors
    return g * 0.5 * (1 + x / torch.sqrt(x * x + ctx.b)), None
op.register_autograd(back, setup_context=setup)
class Own:
    apply = staticmethod(lambda x: op(x, 2.0))
""",
        (
            ("(1 + x / torch", "(1 - x / torch", "sign|operator"),
            ("g * 0.5 * (1 +", "g * (1 +", "factor"),
            ("x * x + ctx.b))", "x * x))", "missing term|epsilon"),
        ),
    ),
)
