"""Backward functions that move elements, and of whole blocks, with wrong versions of each: see `backwards`."""
# ruff: noqa: E501

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
    DERIVATIVE,
    FACTOR,
    MEAN,
    OPERAND,
    OPERATOR,
    REGION,
    SHIFTED,
    SWAPPED,
    TERM,
    TRANSPOSED,
    UPSTREAM,
    Backward,
    factor,
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
            (
                "g[:, None] * hot",
                "g[:, None].expand_as(hot).clone()",
                r"(missing factor|region): .*(one-hot|max|largest)",
            ),
            ("g[:, None] * hot", "hot.to(g.dtype)", UPSTREAM),
            ("F.one_hot(i,", "F.one_hot(x.min(1).indices,", r"(wrong operand|region|operator: .*`max`)"),
        ),
    ),
    Backward(
        "upsampling",
        "x=n,s",
        "return x.repeat_interleave(2, 1)",
        "return g.reshape(len(g), -1, 2).sum(2)",
        (
            (".sum(2)", ".mean(2)", r"(1/N|factor): "),
            (".sum(2)", "[:, :, 0]", r"reduction: "),
            ("-1, 2).sum(2)", "2, -1).sum(1)", r"(wrong number|reduction|wrong argument|transpose): "),
        ),
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
            (
                "F.conv_transpose1d(g, w, padding=1)",
                "F.conv_transpose1d(g, w.flip(2), padding=1)",
                r"(missing function|extra function): .*flip",
            ),
            (
                "F.conv_transpose1d(g, w, padding=1)",
                "F.conv1d(g, w.transpose(0, 1), padding=1)",
                r"(missing function|operator|shifted|wrong function): .*(flip|transpose)",
            ),
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
        (
            (" / 2", "", r"(factor|1/N): "),
            ("g.repeat_interleave(2, 2) / 2", "torch.cat([g, g], 2) / 2", REGION),
            ("g.repeat_interleave(2, 2) / 2", "torch.ones_like(g).repeat_interleave(2, 2) / 2", UPSTREAM),
        ),
    ),
    Backward(
        "maximum pooling",
        "x=n,c",
        "z = x.reshape(len(x), -1, 2)\ny, i = z.max(2)\nctx.save_for_backward(z, i)\nreturn y",
        "z, i = ctx.saved_tensors\nd = torch.zeros_like(z).scatter_(2, i[:, :, None], g[:, :, None])\nreturn d.flatten(1)",
        (
            (
                "i[:, :, None], g",
                "1 - i[:, :, None], g",
                r"(wrong operand|sign|extra function|operator|shifted|extra term): ",
            ),
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
