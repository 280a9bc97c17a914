"""Backward functions of scans, permutations, graphs and geometry, with wrong versions of each: see `backwards`."""
# ruff: noqa: E501

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
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

NUMBER = r"(wrong number|factor): "
PERMUTATION = r"permutation: "

ORDERS = (
    Backward(
        "haar wavelet",
        "x=n,e",
        "a, b = x[:, 0::2], x[:, 1::2]\nreturn (a + b) * 0.5**0.5, (a - b) * 0.5**0.5",
        "dx = torch.empty(len(g), 2 * g.shape[1], dtype=g.dtype)\ndx[:, 0::2] = (g + gc) * 0.5**0.5\ndx[:, 1::2] = (g - gc) * 0.5**0.5\nreturn dx",
        (
            ("(g - gc)", "(gc - g)", rf"({SIGN}|{SWAPPED})"),
            ("(g + gc) * 0.5**0.5", "(g + gc) * 0.5", NUMBER),
        ),
    ),
    Backward(
        "exponential mean",
        "x=s,d a=d:p",
        "h, rows = torch.zeros_like(a), []\nfor row in x:\n    h = a * h + (1 - a) * row\n    rows.append(h)\ny = torch.stack(rows)\nctx.save_for_backward(x, a, y)\nreturn y",
        "x, a, y = ctx.saved_tensors\ndx, da, dh = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(a)\nfor t in range(len(x) - 1, -1, -1):\n    dh = dh + g[t]\n    before = y[t - 1] if t else torch.zeros_like(a)\n    dx[t] = dh * (1 - a)\n    da = da + dh * (before - x[t])\n    dh = dh * a\nreturn dx, da",
        (
            ("dh = dh + g[t]", "dh = g[t]", TERM + ".*the turn before"),
            ("    dh = dh * a\n", "", factor("`a`")),
        ),
    ),
    Backward(
        "compositing",
        "a=n,s:p c=n,s",
        "through = torch.cumprod(torch.cat([torch.ones_like(a[:, :1]), 1 - a[:, :-1]], 1), 1)\nw = a * through\nctx.save_for_backward(a, c, through, w)\nreturn (w * c).sum(1)",
        "a, c, through, w = ctx.saved_tensors\nwc = w * c\nafter = wc.flip(1).cumsum(1).flip(1) - wc\nda = g[:, None] * (through * c - after / (1 - a))\nreturn da, g[:, None] * w",
        (
            (".flip(1).cumsum(1).flip(1)", ".cumsum(1)", r"missing function: "),
            (".flip(1) - wc", ".flip(1)", TERM),
            ("after / (1 - a)", "after", factor("1 minus `a`")),
            ("through * c - after", "through * c + after", rf"({SIGN}|{OPERATOR})"),
        ),
    ),
    Backward(
        "rows in another order",
        "x=n,d",
        "order = torch.arange(len(x)).roll(1)\nctx.save_for_backward(order)\nreturn 2 * x[order]",
        "order, = ctx.saved_tensors\nback = g[order.argsort()]\nreturn 2 * back",
        (
            ("g[order.argsort()]", "g[order]", PERMUTATION),
            ("2 * back", "back", FACTOR),
        ),
    ),
    Backward(
        "squares in order",
        "x=n,d",
        "y, order = x.sort(dim=0)\nctx.save_for_backward(y, order)\nreturn y.square()",
        "y, order = ctx.saved_tensors\ndy = 2 * y * g\nreturn torch.zeros_like(dy).scatter_(0, order, dy)",
        (
            ("torch.zeros_like(dy).scatter_(0, order, dy)", "dy.gather(0, order)", PERMUTATION),
            ("2 * y * g", "2 * g", factor("`y`")),
        ),
    ),
    Backward(
        "interpolation at a coordinate",
        "f=n,s x=n:p",
        "p = x * (f.shape[1] - 1)\ni = p.floor().long()\nt = p - i\nlow, high = f.gather(1, i[:, None])[:, 0], f.gather(1, i[:, None] + 1)[:, 0]\nctx.save_for_backward(f, i, t, low, high)\nreturn (1 - t) * low + t * high",
        "f, i, t, low, high = ctx.saved_tensors\ndf = torch.zeros_like(f)\ndf.scatter_add_(1, i[:, None], ((1 - t) * g)[:, None])\ndf.scatter_add_(1, i[:, None] + 1, (t * g)[:, None])\ndx = g * (high - low) * (f.shape[1] - 1)\nreturn df, dx",
        (
            ("(high - low) * (f.shape[1] - 1)", "(high - low)", r"(factor|missing factor|1/N): "),
            ("g * (high - low)", "g * (low - high)", rf"({SIGN}|{SWAPPED})"),
        ),
    ),
    Backward(
        "student t",
        "x=n v=n:+",
        "ctx.save_for_backward(x, v)\nreturn torch.lgamma(v / 2) - torch.lgamma((v + 1) / 2) + 0.5 * v.log() + (v + 1) / 2 * torch.log1p(x * x / v)",
        "x, v = ctx.saved_tensors\nq = v + x * x\ndx = g * (v + 1) * x / q\ndv = 0.5 * (torch.digamma(v / 2) - torch.digamma((v + 1) / 2) + 1 / v + torch.log1p(x * x / v) - (v + 1) * x * x / (v * q))\nreturn dx, g * dv",
        (
            ("(v + 1) * x / q", "v * x / q", TERM),
            (" + 1 / v", "", TERM),
            ("g * dv", "dv", UPSTREAM),
        ),
    ),
    Backward(
        "preference loss",
        "a=n b=n",
        "d = 0.3 * (a - b)\nctx.save_for_backward(d)\nctx.beta = 0.3\nreturn -F.logsigmoid(d).mean()",
        "d, = ctx.saved_tensors\ndd = -g * torch.sigmoid(-d) / d.numel()\nreturn ctx.beta * dd, -ctx.beta * dd",
        (
            ("-ctx.beta * dd", "ctx.beta * dd", SIGN),
            (" / d.numel()", "", MEAN),
            ("ctx.beta * dd, -", "dd, -", rf"({FACTOR}|{factor('beta')})"),
        ),
    ),
    Backward(
        "circulant matrix",
        "x=s c=s",
        "n = torch.arange(len(x))\nindex = (n[:, None] - n) % len(x)\nctx.save_for_backward(x, c, index)\nreturn c[index] @ x",
        "x, c, index = ctx.saved_tensors\ndx = c[index].t() @ g\ndc = torch.zeros_like(c).index_put_((index,), torch.outer(g, x), accumulate=True)\nreturn dx, dc",
        (
            ("c[index].t() @ g", "c[index] @ g", TRANSPOSED),
            (", accumulate=True", "", OPERATOR),
        ),
    ),
    Backward(
        "mean of the neighbours",
        "x=n,d i=n:<n j=n:<n",
        "degree = torch.zeros(len(x), dtype=x.dtype).index_add_(0, j, torch.ones(len(j), dtype=x.dtype)).clamp(min=1)\nctx.save_for_backward(i, j, degree)\nreturn torch.zeros_like(x).index_add_(0, j, x[i]) / degree[:, None]",
        "i, j, degree = ctx.saved_tensors\nh = g / degree[:, None]\nreturn torch.zeros_like(g).index_add_(0, i, h[j]), None, None",
        (("h = g / degree[:, None]", "h = g", factor("`degree`")),),
    ),
    Backward(
        "nearest points",
        "a=n,d b=m,d",
        "near, i = (a[:, None] - b).square().sum(-1).min(1)\nctx.save_for_backward(a, b, i)\nreturn near.mean()",
        "a, b, i = ctx.saved_tensors\nda = g * 2 * (a - b[i]) / len(a)\nreturn da, torch.zeros_like(b).index_add_(0, i, -da)",
        (
            ("index_add_(0, i, -da)", "index_add_(0, i, da)", SIGN),
            (" / len(a)", "", MEAN),
        ),
    ),
    Backward(
        "sparse matrix by its values",
        "v=n x=m,d i=n:<m j=n:<m",
        "ctx.save_for_backward(v, x, i, j)\nreturn torch.zeros_like(x).index_add_(0, i, v[:, None] * x[j])",
        "v, x, i, j = ctx.saved_tensors\ndv = (g[i] * x[j]).sum(1)\nreturn dv, torch.zeros_like(x).index_add_(0, j, v[:, None] * g[i]), None, None",
        (
            ("g[i] * x[j]", "g[i] * x[i]", OPERAND),
            ("v[:, None] * g[i]", "g[i]", factor("`v`")),
        ),
    ),
    Backward(
        "gain of a filter",
        "p=n:+ r=n:+ m=n y=n",
        "k = p / (p + r)\nctx.save_for_backward(p, r, k, y - m)\nreturn m + k * (y - m), (1 - k) * p",
        "p, r, k, e = ctx.saved_tensors\ndk = g * e - gc * p\ns = p + r\ndp = dk * r / s**2 + gc * (1 - k)\nreturn dp, -dk * p / s**2, g * (1 - k), g * k",
        (
            (" - gc * p", "", TERM),
            (" + gc * (1 - k)", "", TERM),
            ("g * (1 - k), g * k", "g, g * k", rf"({factor('1 minus')}|{TERM})"),
            ("dk * r / s**2", "dk * p / s**2", OPERAND),
        ),
    ),
    Backward(
        "rows to one norm",
        "x=n,d",
        "c = x - x.mean(1, keepdim=True)\ns = c.norm()\nctx.save_for_backward(c, s)\nreturn c / s",
        "c, s = ctx.saved_tensors\ny = c / s\ndc = (g - y * (g * y).sum()) / s\nreturn dc - dc.mean(1, keepdim=True)",
        (
            ("dc - dc.mean(1, keepdim=True)", "dc", TERM),
            ("(g * y).sum()", "(g * y).sum(1, keepdim=True)", AXIS + "|reduction: "),
        ),
    ),
)
