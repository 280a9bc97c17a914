"""Backward functions of layers, as users write them, with wrong versions of each: see `backwards`."""

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
    DERIVATIVE,
    EPSILON,
    EXTRA,
    FACTOR,
    MEAN,
    NO_SUM,
    OPERAND,
    OPERATOR,
    REGION,
    SHIFTED,
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
            ("x.t() @ g", "w", r"(wrong operand|not recognised): "),
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
            ("g[:, None] * w", "g.mean() * w.expand_as(x)", r"wrong operand: .*should be `w.*times the upstream"),
            ("(g[:, None] * x).sum(0)", "x.sum(0)", UPSTREAM),
        ),
    ),
    Backward(
        "mean over an axis",
        "x=n,d",
        "ctx.n = x.shape[0]\nreturn x.mean(0)",
        "return (g / ctx.n).expand(ctx.n, -1)",
        (("g / ctx.n", "g", r"(1/N|factor): .*(`ctx.n`|N) = "), ("g / ctx.n", "g * ctx.n", r"(operator|factor|1/N): "), ("g / ctx.n", "g / len(g)", r"(wrong number|1/N|factor): ")),
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

PLACES = (
    Backward(
        "cumulative sum",
        "x=n,s",
        "return x.cumsum(1)",
        "return g.flip(1).cumsum(1).flip(1)",
        (
            ("g.flip(1).cumsum(1).flip(1)", "g.cumsum(1)", r"(missing function|shifted): .*(flip|revers)"),
            (".cumsum(1)", ".cumsum(0)", AXIS),
            (".cumsum(1).flip(1)", ".cumsum(1)", r"(missing function|shifted): .*(flip|revers)"),
        ),
    ),
    Backward(
        "differences of neighbours",
        "x=n,s",
        "return x[:, 1:] - x[:, :-1]",
        "dx = g.new_zeros(g.shape[0], g.shape[1] + 1)\ndx[:, 1:] += g\ndx[:, :-1] -= g\nreturn dx",
        (
            ("dx[:, :-1] -= g\n", "", TERM),
            ("dx[:, :-1] -= g", "dx[:, :-1] += g", r"(operator|sign): "),
            ("dx[:, 1:] += g\n", "dx[:, :-1] += g\n", SHIFTED),
        ),
    ),
    Backward(
        "shift",
        "x=n,s y=n,s",
        "ctx.save_for_backward(x, y)\nreturn x.roll(1, 1) * y",
        "x, y = ctx.saved_tensors\ndx = (g * y).roll(-1, 1)\nreturn dx, g * x.roll(1, 1)",
        (
            ("(g * y).roll(-1, 1)", "(g * y).roll(1, 1)", r"(shifted|wrong number): "),
            ("(g * y).roll(-1, 1)", "(g * y)", SHIFTED),
            ("g * x.roll(1, 1)", "g * x", SHIFTED),
        ),
    ),
    Backward(
        "padding",
        "x=n,s",
        "ctx.save_for_backward(x)\ny = F.pad(x, (1, 2))\nreturn y * y",
        "x, = ctx.saved_tensors\nreturn 2 * x * g[:, 1:-2]",
        (("g[:, 1:-2]", "g[:, :-3]", SHIFTED), ("g[:, 1:-2]", "g[:, 2:-1]", SHIFTED)),
    ),
    Backward(
        "embedding",
        "table=v,d ids=s:<v",
        "ctx.save_for_backward(table, ids)\nreturn table[ids]",
        "table, ids = ctx.saved_tensors\nd = torch.zeros_like(table)\nd.index_add_(0, ids, g)\nreturn d, None",
        (
            ("d.index_add_(0, ids, g)", "d[ids] = g", r"(operator|overwritten index): .*(repeated|accumulat|add)"),
            ("d.index_add_(0, ids, g)", "d.index_add_(0, ids, torch.ones_like(g))", UPSTREAM),
            ("(0, ids, g)", "(0, (ids + 1) % len(table), g)", SHIFTED),
        ),
    ),
    Backward(
        "gather",
        "x=n,c i=n,k:<c",
        "ctx.save_for_backward(x, i)\nreturn x.gather(1, i)",
        "x, i = ctx.saved_tensors\nreturn torch.zeros_like(x).scatter_add_(1, i, g), None",
        (
            ("scatter_add_(1, i, g)", "scatter_(1, i, g)", r"operator: .*(repeated|accumulat|add)"),
            ("scatter_add_(1, i, g)", "scatter_add_(1, i, torch.ones_like(g))", UPSTREAM),
            ("scatter_add_(1, i, g)", "scatter_add_(1, i.flip(1), g)", r"(missing|extra) function: .*flip"),
        ),
    ),
    Backward(
        "scatter add",
        "x=s,d w=s i=s:<v",
        "ctx.save_for_backward(x, w, i)\nout = x.new_zeros(9 + int(i.max()), x.shape[1])\n"
        "return out.index_add(0, i, w[:, None] * x)",
        "x, w, i = ctx.saved_tensors\npicked = g[i]\nreturn w[:, None] * picked, (x * picked).sum(1), None",
        (
            ("w[:, None] * picked", "picked", factor("`w`")),
            ("picked = g[i]", "picked = g[i + 1]", SHIFTED),
            ("(x * picked).sum(1)", "x.sum(1)", r"(missing factor|missing term|reduction): "),
        ),
    ),
    Backward(
        "maximum of rows",
        "x=n,c",
        "y, i = x.max(1)\nctx.save_for_backward(x, i)\nreturn y",
        "x, i = ctx.saved_tensors\nhot = F.one_hot(i, x.shape[1])\nreturn g[:, None] * hot",
        (
            ("g[:, None] * hot", "g[:, None].expand_as(hot).clone()", r"(missing factor|region): .*(one-hot|max|largest)"),
            ("g[:, None] * hot", "hot.to(g.dtype)", UPSTREAM),
            ("F.one_hot(i,", "F.one_hot(x.min(1).indices,", r"(wrong operand|region|operator: .*`max`)"),
        ),
    ),
    Backward(
        "upsampling",
        "x=n,s",
        "return x.repeat_interleave(2, 1)",
        "return g.reshape(len(g), -1, 2).sum(2)",
        ((".sum(2)", ".mean(2)", r"(1/N|factor): "), (".sum(2)", "[:, :, 0]", r"reduction: "), ("-1, 2).sum(2)", "2, -1).sum(1)", r"(wrong number|reduction|wrong argument|transpose): ")),
    ),
    Backward(
        "rotary embedding",
        "x=n,e a=n,h:w",
        "cos, sin = a.cos(), a.sin()\nl, r = x.chunk(2, 1)\nctx.save_for_backward(cos, sin)\n"
        "return torch.cat([l * cos - r * sin, l * sin + r * cos], 1)",
        "cos, sin = ctx.saved_tensors\nu, v = g.chunk(2, 1)\nleft = u * cos + v * sin\nright = v * cos - u * sin\n"
        "return torch.cat([left, right], 1), None",
        (
            ("u * cos + v * sin", "u * cos - v * sin", r"(operator|sign): "),
            ("[left, right]", "[right, left]", r"(swapped|shifted|wrong operand): "),
            ("v * cos - u * sin", "v * cos", TERM),
            ("v * cos - u * sin", "v * sin - u * sin", OPERAND),
        ),
    ),
)

WINDOWS = (
    Backward(
        "one-dimensional convolution",
        "x=b,d,s w=e,d,k",
        "ctx.save_for_backward(x, w)\nreturn F.conv1d(x, w, padding=1)",
        "x, w = ctx.saved_tensors\ndx = F.conv_transpose1d(g, w, padding=1)\n"
        "dw = F.conv1d(x.transpose(0, 1), g.transpose(0, 1), padding=1).transpose(0, 1)\nreturn dx, dw",
        (
            ("F.conv_transpose1d(g, w, padding=1)", "F.conv_transpose1d(g, w.flip(2), padding=1)", r"(missing function|extra function): .*flip"),
            ("F.conv_transpose1d(g, w, padding=1)", "F.conv1d(g, w.transpose(0, 1), padding=1)", r"(missing function|operator|shifted|wrong function): .*(flip|transpose)"),
            ("F.conv_transpose1d(g, w, padding=1)", "F.conv_transpose1d(g, w)[:, :, :-2]", r"(shifted|wrong number): "),
        ),
    ),
    Backward(
        "two-dimensional convolution with bias",
        "x=b,d,n,m w=e,d,k,k b=e",
        "ctx.save_for_backward(x, w)\nreturn F.conv2d(x, w, b, padding=1)",
        "x, w = ctx.saved_tensors\ndx = torch.nn.grad.conv2d_input(x.shape, w, g, padding=1)\n"
        "dw = torch.nn.grad.conv2d_weight(x, w.shape, g, padding=1)\ndb = g.sum((0, 2, 3))\nreturn dx, dw, db",
        (
            ("g.sum((0, 2, 3))", "g.mean((0, 2, 3))", MEAN),
            ("g.sum((0, 2, 3))", "g.sum((2, 3))[0]", r"reduction: "),
            ("(x.shape, w, g,", "(x.shape, w.transpose(2, 3), g,", TRANSPOSED),
        ),
    ),
    Backward(
        "average pooling",
        "x=b,d,c",
        "return F.avg_pool1d(x, 2)",
        "return g.repeat_interleave(2, 2) / 2",
        ((" / 2", "", r"(factor|1/N): "), ("g.repeat_interleave(2, 2) / 2", "torch.cat([g, g], 2) / 2", REGION), ("g.repeat_interleave(2, 2) / 2", "torch.ones_like(g).repeat_interleave(2, 2) / 2", UPSTREAM)),
    ),
    Backward(
        "maximum pooling",
        "x=n,c",
        "z = x.reshape(len(x), -1, 2)\ny, i = z.max(2)\nctx.save_for_backward(z, i)\nreturn y",
        "z, i = ctx.saved_tensors\nd = torch.zeros_like(z).scatter_(2, i[:, :, None], g[:, :, None])\nreturn d.flatten(1)",
        (
            ("i[:, :, None], g", "1 - i[:, :, None], g", r"(wrong operand|sign|extra function|operator|shifted|extra term): "),
            ("g[:, :, None])", "torch.ones_like(g)[:, :, None])", UPSTREAM),
            ("g[:, :, None])", "g[:, :, None] / 2)", FACTOR),
        ),
    ),
    Backward(
        "sums of neighbours",
        "x=n,s",
        "return x[:, :-2] + x[:, 1:-1] + x[:, 2:]",
        "d = g.new_zeros(len(g), g.shape[1] + 2)\nd[:, :-2] += g\nd[:, 1:-1] += g\nd[:, 2:] += g\nreturn d",
        (
            ("d[:, 2:] += g\n", "", TERM),
            ("d[:, 1:-1] += g\n", "d[:, 1:-1] = g\n", r"operator: |missing term: |region: "),
            ("d[:, 2:] += g", "d[:, 1:-1] += g", SHIFTED),
        ),
    ),
)

NETWORKS = (
    Backward(
        "attention with a mask",
        "q=s,d k=s,d v=s,e mask=s,s:01",
        "scale = q.shape[1] ** -0.5\nscores = (q @ k.t() * scale).masked_fill(mask == 0, -50.0)\np = scores.softmax(-1)\n"
        "ctx.save_for_backward(q, k, v, p, mask)\nctx.scale = scale\nreturn p @ v",
        "q, k, v, p, mask = ctx.saved_tensors\ndv = p.t() @ g\ndp = g @ v.t()\n"
        "ds = p * (dp - (dp * p).sum(-1, keepdim=True))\nds = ds * mask * ctx.scale\n"
        "dq = ds @ k\ndk = ds.t() @ q\nreturn dq, dk, dv, None",
        (
            (" * ctx.scale", "", FACTOR),
            ("ds.t() @ q", "ds @ q", TRANSPOSED),
            ("p * (dp - (dp * p).sum(-1, keepdim=True))", "p * dp", TERM),
            ("p.t() @ g", "p @ g", TRANSPOSED),
            ("(dp * p).sum(-1, keepdim=True)", "(dp * p).sum(0, keepdim=True)", AXIS),
            ("dq = ds @ k", "dq = ds @ q", rf"{OPERAND}.*`k`"),
        ),
    ),
    Backward(
        "swiglu",
        "x=n,d u=n,d",
        "s = x.sigmoid()\nctx.save_for_backward(x, u, s)\nreturn x * s * u",
        "x, u, s = ctx.saved_tensors\nsilu = x * s\ndsilu = s * (1 + x * (1 - s))\nreturn g * u * dsilu, g * silu",
        (
            ("g * u * dsilu", "g * dsilu", factor("`u`")),
            ("1 + x * (1 - s)", "1 + (1 - s)", factor("`x`")),
            ("g * silu", "g * x", factor("")),
            ("1 + x * (1 - s)", "x * (1 - s)", r"(missing term|operator): "),
        ),
    ),
    Backward(
        "lstm cell",
        "a=n,d f=n,d o=n,d z=n,d c=n,d",
        "i, f, o, z = a.sigmoid(), f.sigmoid(), o.sigmoid(), z.tanh()\nnew = f * c + i * z\nt = new.tanh()\n"
        "ctx.save_for_backward(i, f, o, z, c, t)\nreturn o * t, new",
        "i, f, o, z, c, t = ctx.saved_tensors\ndo = g * t\ndnew = gc + g * o * (1 - t**2)\ndf = dnew * c\ndi = dnew * z\n"
        "dz = dnew * i\nreturn di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dz * (1 - z**2), dnew * f",
        (
            ("gc + g * o * (1 - t**2)", "g * o * (1 - t**2)", rf"{TERM}.*upstream"),
            ("gc + g * o * (1 - t**2)", "gc + g * o", factor("")),
            ("df = dnew * c", "df = dnew", factor("`c`")),
            ("dnew * z\n", "dnew * i\n", OPERAND),
            ("do * o * (1 - o)", "do", DERIVATIVE),
            ("dnew * f", "dnew + f", OPERATOR),
        ),
    ),
    Backward(
        "gated sum",
        "x=n,d y=n,d a=n,d",
        "s = a.sigmoid()\nctx.save_for_backward(x, y, s)\nreturn s * x + (1 - s) * y",
        "x, y, s = ctx.saved_tensors\nda = g * (x - y) * s * (1 - s)\nreturn g * s, g * (1 - s), da",
        (
            ("g * s, g * (1 - s)", "g * (1 - s), g * s", SWAPPED),
            ("g * (x - y)", "g * x", r"(missing term|operator|wrong operand): .*`y`"),
            ("* s * (1 - s)", "", DERIVATIVE),
        ),
    ),
    Backward(
        "residual block",
        "x=n,d w=d,d",
        "h = (x @ w).relu()\nctx.save_for_backward(x, w, h)\nreturn x + h",
        "x, w, h = ctx.saved_tensors\ndh = g * (h > 0)\ndw = x.t() @ dh\ndx = g + dh @ w.t()\nreturn dx, dw",
        (
            ("g + dh @ w.t()", "dh @ w.t()", rf"{TERM}.*upstream"),
            ("g + dh @ w.t()", "g * (dh @ w.t())", OPERATOR),
            ("dh @ w.t()", "dh @ w", TRANSPOSED),
            ("g * (h > 0)", "g", r"(missing factor|region|missing term): "),
        ),
    ),
    Backward(
        "triangular mask",
        "x=n,n w=n,n",
        "ctx.save_for_backward(x, w)\nreturn x.tril() * w",
        "x, w = ctx.saved_tensors\ndx = (g * w).tril()\ndw = g * x.tril()\nreturn dx, dw",
        (
            ("(g * w).tril()", "(g * w)", r"(missing function|region): .*(tril|triangle|diagonal)"),
            ("(g * w).tril()", "(g * w).tril(-1)", r"(wrong number|region|shifted): .*(diagonal|-1)"),
        ),
    ),
    Backward(
        "last row wrong",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x.sin()",
        "x, = ctx.saved_tensors\ndx = torch.zeros_like(x)\ndx[:] = g * x.cos()\nreturn dx",
        (
            ("dx[:] = g * x.cos()", "dx[:-1] = (g * x.cos())[:-1]", rf"{REGION}.*last row"),
            ("dx[:] = g * x.cos()", "dx[:, 1:] = (g * x.cos())[:, 1:]", rf"{REGION}.*first column"),
        ),
    ),
)

SUM_FORGOTTEN, TERM_TOO_MANY = NO_SUM, EXTRA
