"""Backward functions of matrices and normalisations, with wrong versions of each: see `backwards`."""
# ruff: noqa: E501

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
    DERIVATIVE,
    EPSILON,
    FACTOR,
    MEAN,
    OPERAND,
    OPERATOR,
    SIGN,
    SWAPPED,
    TERM,
    TRANSPOSED,
    UPSTREAM,
    Backward,
    factor,
)

LINEAR = (
    Backward(
        "matmul",
        "x=n,d w=d,m",
        "ctx.save_for_backward(x, w)\nreturn x @ w",
        "x, w = ctx.saved_tensors\nreturn g @ w.t(), x.t() @ g",
        (
            ("x.t() @ g", "(x.t() @ g) / len(x)", MEAN),
            ("x.t() @ g", "x.t() @ torch.ones_like(g)", r"(missing factor|wrong function|wrong operand): .*upstream"),
            ("x.t() @ g", "w", r"wrong expression: .*`x` transposed @ the upstream"),
        ),
    ),
    Backward(
        "matmul of squares",
        "x=n,n w=n,n",
        "ctx.save_for_backward(x, w)\nreturn x @ w",
        "x, w = ctx.saved_tensors\ndx = g @ w.t()\ndw = x.t() @ g\nreturn dx, dw",
        (
            ("g @ w.t()", "g @ w", TRANSPOSED),
            ("x.t() @ g", "g @ x.t()", r"(swapped|operator): "),
            ("dx, dw", "dw, dx", SWAPPED),
            ("x.t() @ g", "x.t() * g", OPERATOR),
        ),
    ),
    Backward(
        "linear",
        "x=n,d w=m,d b=m",
        "ctx.save_for_backward(x, w)\nreturn x @ w.t() + b",
        "x, w = ctx.saved_tensors\ndx = g @ w\ndw = g.t() @ x\ndb = g.sum(0)\nreturn dx, dw, db",
        (
            ("g.sum(0)", "g.mean(0)", MEAN),
            ("g.sum(0)", "g[0]", r"reduction: "),
            ("g.sum(0)", "torch.ones_like(g).sum(0)", UPSTREAM),
            ("g.t() @ x", "-g.t() @ x", SIGN),
        ),
    ),
    Backward(
        "two layers",
        "x=n,d w=d,m v=m,k",
        "z = x @ w\na = z.tanh()\nctx.save_for_backward(x, w, v, a)\nreturn a @ v",
        "x, w, v, a = ctx.saved_tensors\nda = g @ v.t()\ndz = da * (1 - a**2)\ndv = a.t() @ g\ndw = x.t() @ dz\n"
        "dx = dz @ w.t()\nreturn dx, dw, dv",
        (
            ("da * (1 - a**2)", "da", DERIVATIVE),
            ("da * (1 - a**2)", "da * a", r"(wrong operand|wrong function|missing term|missing factor|operator)"),
            ("x.t() @ dz", "x.t() @ da", rf"({OPERAND}|{DERIVATIVE}.*tanh)"),
            ("a.t() @ g", "(x @ w).t() @ g", r"(missing function|wrong operand): "),
        ),
    ),
    Backward(
        "batched matmul",
        "x=b,n,d w=b,d,n",
        "ctx.save_for_backward(x, w)\nreturn x @ w",
        "x, w = ctx.saved_tensors\nreturn g @ w.mT, x.mT @ g",
        (
            ("g @ w.mT", "g.mT @ w.mT", TRANSPOSED),
            ("x.mT @ g", "x.mT @ g.sum(0)", r"(reduction|extra function): "),
        ),
    ),
    Backward(
        "outer product",
        "x=n y=d",
        "ctx.save_for_backward(x, y)\nreturn x[:, None] * y",
        "x, y = ctx.saved_tensors\ndx = (g * y).sum(1)\ndy = (g * x[:, None]).sum(0)\nreturn dx, dy",
        (("(g * y).sum(1)", "g.sum(1)", factor("`y`")), ("g * x[:, None]", "g + x[:, None]", OPERATOR)),
    ),
    Backward(
        "bilinear form",
        "x=n,d w=d,d y=n,d",
        "ctx.save_for_backward(x, w, y)\nreturn (x @ w * y).sum(1)",
        "x, w, y = ctx.saved_tensors\nu = g[:, None]\ndx = u * (y @ w.t())\ndw = x.t() @ (u * y)\ndy = u * (x @ w)\n"
        "return dx, dw, dy",
        (
            ("y @ w.t()", "y @ w", TRANSPOSED),
            ("x.t() @ (u * y)", "x.t() @ y", UPSTREAM),
            ("u * (x @ w)", "u * x", r"(missing factor|missing function|wrong operand): "),
        ),
    ),
    Backward(
        "sum over an axis",
        "x=n,d w=d",
        "ctx.save_for_backward(x, w)\nreturn (x * w).sum(1)",
        "x, w = ctx.saved_tensors\nreturn g[:, None] * w, (g[:, None] * x).sum(0)",
        (
            ("g[:, None] * w", "g.mean() * w.expand_as(x)", r"wrong expression: .*should be .*times the upstream"),
            ("(g[:, None] * x).sum(0)", "x.sum(0)", UPSTREAM),
        ),
    ),
    Backward(
        "mean over an axis",
        "x=n,d",
        "ctx.n = x.shape[0]\nreturn x.mean(0)",
        "return (g / ctx.n).expand(ctx.n, -1)",
        (
            ("g / ctx.n", "g", r"(1/N|factor): .*(`ctx.n`|N) = "),
            ("g / ctx.n", "g * ctx.n", r"(operator|factor|1/N): "),
            ("g / ctx.n", "g / len(g)", r"(wrong number|1/N|factor): "),
        ),
    ),
    Backward(
        "variance",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x.var(0)",
        "x, = ctx.saved_tensors\nn = len(x)\ncentred = x - x.mean(0)\nreturn 2 * g * centred / (n - 1)",
        (
            ("(n - 1)", "n", r"(factor|wrong number|1/N): "),
            ("x - x.mean(0)", "x", r"(missing term|extra term): .*mean"),
            ("2 * g", "g", FACTOR),
            ("x - x.mean(0)", "x - x.mean()", AXIS),
        ),
    ),
    Backward(
        "trace of a product",
        "x=n,d y=d,n",
        "ctx.save_for_backward(x, y)\nreturn (x @ y).trace()",
        "x, y = ctx.saved_tensors\nreturn g * y.t(), g * x.t()",
        (("g * y.t()", "g * y.reshape(x.shape)", TRANSPOSED), ("g * y.t()", "y.t()", UPSTREAM)),
    ),
)

NORMS = (
    Backward(
        "layer norm",
        "x=n,d w=d b=d eps=0.2",
        "mean = x.mean(-1, keepdim=True)\nvar = x.var(-1, keepdim=True, unbiased=False)\nr = (var + eps).rsqrt()\n"
        "h = (x - mean) * r\nctx.save_for_backward(x, w, h, r)\nreturn h * w + b",
        "x, w, h, r = ctx.saved_tensors\ndw = (g * h).sum(0)\ndb = g.sum(0)\ndh = g * w\n"
        "first = dh.mean(-1, keepdim=True)\nsecond = (dh * h).mean(-1, keepdim=True)\n"
        "dx = r * (dh - first - h * second)\nreturn dx, dw, db, None",
        (
            ("dh - first - h * second", "dh - h * second", TERM),
            ("dh - first - h * second", "dh - first", TERM),
            ("dh = g * w", "dh = g", factor("`w`")),
            ("(g * h).sum(0)", "(g * x).sum(0)", OPERAND),
            ("r * (dh", "(dh", factor("")),
            ("(dh * h).mean(-1, keepdim=True)", "(dh * h).sum(-1, keepdim=True)", r"(1/N|reduction|operator): "),
            ("dh.mean(-1, keepdim=True)", "dh.mean(0, keepdim=True)", AXIS),
        ),
    ),
    Backward(
        "batch norm",
        "x=n,d w=d b=d eps=0.2",
        "mean, var = x.mean(0), x.var(0, unbiased=False)\nstd = (var + eps).sqrt()\nh = (x - mean) / std\n"
        "ctx.save_for_backward(x, w, h)\nctx.eps = eps\nreturn w * h + b",
        "x, w, h = ctx.saved_tensors\nstd = (x.var(0, unbiased=False) + ctx.eps).sqrt()\ndh = g * w\n"
        "dx = (dh - dh.mean(0) - h * (dh * h).mean(0)) / std\nreturn dx, (g * h).sum(0), g.sum(0), None",
        (
            (" + ctx.eps).sqrt()", ").sqrt()", EPSILON),
            (".sqrt()", "", r"missing function: .*sqrt"),
            (" + ctx.eps).sqrt()", ").sqrt() + ctx.eps", EPSILON),
            ("unbiased=False", "unbiased=True", r"(wrong number|reduction|wrong argument): .*(unbiased|N)"),
            ("(g * h).sum(0)", "g.sum(0)", factor("")),
            ("dh - dh.mean(0)", "dh + dh.mean(0)", r"(operator|sign): "),
        ),
    ),
    Backward(
        "root mean square norm",
        "x=n,d w=d eps=0.2",
        "r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()\nctx.save_for_backward(x, w, r)\nreturn x * r * w",
        "x, w, r = ctx.saved_tensors\ndh = g * w\ninner = (dh * x).mean(-1, keepdim=True)\n"
        "dx = r * dh - r**3 * x * inner\ndw = (g * x * r).sum(0)\nreturn dx, dw, None",
        (
            ("r * dh - r**3 * x * inner", "r * dh", TERM),
            ("r**3", "r**2", r"(wrong number|missing factor): "),
            ("(g * x * r)", "(g * x)", factor("")),
            ("(dh * x).mean", "(dh * x).sum", r"(1/N|reduction|operator): "),
        ),
    ),
    Backward(
        "group norm",
        "x=n,c w=c",
        "z = x.reshape(len(x), 2, -1)\nr = z.var(-1, keepdim=True, unbiased=False).rsqrt()\n"
        "h = (z - z.mean(-1, keepdim=True)) * r\nctx.save_for_backward(w, h, r)\nreturn h.reshape(x.shape) * w",
        "w, h, r = ctx.saved_tensors\ndh = (g * w).reshape(h.shape)\nfirst = dh.mean(-1, keepdim=True)\n"
        "second = (dh * h).mean(-1, keepdim=True)\ndx = r * (dh - first - h * second)\n"
        "dw = (g * h.reshape(g.shape)).sum(0)\nreturn dx.reshape(g.shape), dw",
        (
            ("dh - first - h * second", "dh - h * second", TERM),
            ("dh - first - h * second", "dh - first - second", factor("")),
            ("dh.mean(-1, keepdim=True)", "dh.mean(1, keepdim=True)", AXIS),
        ),
    ),
    Backward(
        "unit rows",
        "x=n,d eps=0.3",
        "norm = (x.square().sum(1, keepdim=True) + eps).sqrt()\ny = x / norm\nctx.save_for_backward(x, y, norm)\nreturn y",
        "x, y, norm = ctx.saved_tensors\nalong = (g * y).sum(1, keepdim=True)\nreturn (g - y * along) / norm, None",
        (
            (" / norm", "", factor("")),
            ("y * along", "along", factor("output")),
            ("g - y * along", "g", TERM),
            ("(g * y).sum", "(g * x).sum", rf"{OPERAND}.*output"),
        ),
    ),
    Backward(
        "cosine similarity",
        "x=n,d y=n,d",
        "a, b = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)\nc = (x * y).sum(1, keepdim=True) / (a * b)\n"
        "ctx.save_for_backward(x, y, a, b, c)\nreturn c[:, 0]",
        "x, y, a, b, c = ctx.saved_tensors\nu = g[:, None]\ndx = u * (y / (a * b) - c * x / a**2)\n"
        "dy = u * (x / (a * b) - c * y / b**2)\nreturn dx, dy",
        (
            ("c * x / a**2", "c * x / a", r"(wrong number|missing factor|missing function: .*square)"),
            ("dx = u * (y / (a * b) - c * x / a**2)", "dx = u * y / (a * b)", TERM),
            ("c * y / b**2", "c * y / a**2", OPERAND),
        ),
    ),
    Backward(
        "norm of rows",
        "x=n,d",
        "y = x.norm(dim=1)\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nreturn g[:, None] * x / y[:, None]",
        (
            (" / y[:, None]", "", factor("output")),
            ("x / y[:, None]", "x * y[:, None]", OPERATOR),
            ("g[:, None] * x / y[:, None]", "x / y[:, None]", UPSTREAM),
        ),
    ),
)
