"""Backward functions of recent layers, with wrong versions of each: see `backwards`."""
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
    SIGN,
    SWAPPED,
    TERM,
    TRANSPOSED,
    UPSTREAM,
    Backward,
    factor,
)

RECENT = (
    Backward(
        "gated root mean square norm",
        "x=n,d z=n,d w=d",
        "a = z.sigmoid()\nr = (x.square().mean(-1, keepdim=True) + 1e-2).rsqrt()\nctx.save_for_backward(x, a, r, w)\nreturn x * r * w * a",
        "x, a, r, w = ctx.saved_tensors\nh = x * r\ndz = g * h * w * a * (1 - a)\ndw = (g * h * a).sum(0)\ndh = g * w * a\ndx = r * (dh - h * (dh * h).mean(-1, keepdim=True))\nreturn dx, dz, dw",
        (
            ("a * (1 - a)", "(1 - a)", factor("")),
            ("(dh * h).mean(-1, keepdim=True)", "(dh * h).mean(0, keepdim=True)", AXIS),
            ("dh - h * (dh * h).mean(-1, keepdim=True)", "dh", TERM),
            ("dh = g * w * a", "dh = g * a", factor("`w`")),
        ),
    ),
    Backward(
        "rotary embedding",
        "x=b,n,e t=n,e:w",
        "c, s = t.cos(), t.sin()\na, b = x.chunk(2, -1)\nctx.save_for_backward(c, s)\nreturn x * c + torch.cat((-b, a), -1) * s",
        "c, s = ctx.saved_tensors\na, b = (g * s).chunk(2, -1)\nreturn g * c + torch.cat((b, -a), -1), None",
        (
            ("torch.cat((b, -a), -1)", "torch.cat((-b, a), -1)", rf"({SIGN}|{OPERATOR}|{TERM}|wrong)"),
            ("(g * s).chunk", "(g * c).chunk", r"(wrong operand|wrong function|missing|wrong)"),
            ("g * c + torch.cat((b, -a), -1)", "g * c", TERM),
            ("g * c +", "g +", factor("")),
        ),
    ),
    Backward(
        "swiglu",
        "x=n,d w=d,m v=d,m",
        "a, b = x @ w, x @ v\ns = a.sigmoid()\nctx.save_for_backward(x, w, v, a, b, s)\nreturn a * s * b",
        "x, w, v, a, b, s = ctx.saved_tensors\nda = g * b * s * (1 + a * (1 - s))\ndb = g * a * s\ndw, dv = x.t() @ da, x.t() @ db\ndx = da @ w.t() + db @ v.t()\nreturn dx, dw, dv",
        (
            ("(1 + a * (1 - s))", "(a * (1 - s))", TERM),
            ("da @ w.t() + db @ v.t()", "da @ w.t()", TERM),
            ("db = g * a * s", "db = g * a", factor("")),
            ("dw, dv = x.t() @ da, x.t() @ db", "dw, dv = x.t() @ db, x.t() @ da", SWAPPED),
        ),
    ),
    Backward(
        "grouped convolution of one sample",
        "x=b,c,s w=c,k",
        "ctx.save_for_backward(x, w)\nreturn F.conv1d(x, w[:, None], groups=x.shape[1])",
        "x, w = ctx.saved_tensors\nk = w.shape[1]\np = F.pad(g, (k - 1, k - 1))\ndx = F.conv1d(p, w.flip(1)[:, None], groups=x.shape[1])\ndw = torch.stack([(g * x[..., i:i + g.shape[2]]).sum((0, 2)) for i in range(k)], 1)\nreturn dx, dw",
        (
            ("w.flip(1)", "w", rf"(missing function|extra|reversed|{SHIFTED}|flip|transpose|wrong)"),
            ("(0, 2)) for", "2)[0] for", rf"(reduction|{AXIS})"),
            (
                "x[..., i:i + g.shape[2]]",
                "x[..., k - 1 - i:k - 1 - i + g.shape[2]]",
                rf"({SHIFTED}|reversed|flip|extra|missing function|wrong)",
            ),
            ("return dx, dw", "return dx, dw / len(x)", MEAN + "|" + FACTOR),
        ),
    ),
    Backward(
        "weight standardisation",
        "x=n,d w=m,d",
        "c = w - w.mean(1, keepdim=True)\nr = (c.square().mean(1, keepdim=True) + 1e-3).rsqrt()\nh = c * r\nctx.save_for_backward(x, h, r)\nreturn x @ h.t()",
        "x, h, r = ctx.saved_tensors\ndh = g.t() @ x\ndc = r * (dh - h * (dh * h).mean(1, keepdim=True))\ndw = dc - dc.mean(1, keepdim=True)\nreturn g @ h, dw",
        (
            ("dc - dc.mean(1, keepdim=True)", "dc", TERM),
            ("(dh * h).mean(1, keepdim=True)", "(dh * h).sum(1, keepdim=True)", rf"({MEAN}|factor|reduction: `sum`)"),
            ("dc = r * (", "dc = (", factor("")),
            ("g.t() @ x", "-(g.t() @ x)", SIGN),
        ),
    ),
    Backward(
        "spectral normalisation by given vectors",
        "w=m,d u=m:w v=d:w",
        "s = u @ w @ v\nctx.save_for_backward(w, u, v, s)\nreturn w / s",
        "w, u, v, s = ctx.saved_tensors\ndw = g / s - (g * w).sum() / s**2 * torch.outer(u, v)\nreturn dw, None, None",
        (
            ("g / s - (g * w).sum() / s**2 * torch.outer(u, v)", "g / s", TERM),
            ("/ s**2", "/ s", rf"({FACTOR}|missing|operator|power|extra|wrong)"),
            ("g / s -", "g / s +", rf"({SIGN}|operator)"),
        ),
    ),
    Backward(
        "attention with a window",
        "q=n,e k=n,e v=n,d",
        "i = torch.arange(len(q))\nfar = (i[:, None] - i).abs() > 2\na = (q @ k.t() / q.shape[1]**0.5).masked_fill(far, -torch.inf).softmax(-1)\nctx.save_for_backward(q, k, v, a, far)\nreturn a @ v",
        "q, k, v, a, far = ctx.saved_tensors\nc = q.shape[1]**0.5\nda = g @ v.t()\nds = a * (da - (a * da).sum(-1, keepdim=True)) / c\nreturn ds @ k, ds.t() @ q, a.t() @ g",
        (
            (" / c\nreturn", "\nreturn", "factor|missing factor"),
            ("da - (a * da).sum(-1, keepdim=True)", "da", TERM),
            ("ds.t() @ q", "ds @ q", TRANSPOSED),
            ("ds = a * (", "ds = (~far) * (", "missing|wrong|extra"),
        ),
    ),
    Backward(
        "segment means",
        "x=n,d i=n:<k",
        "m = torch.zeros(int(i.max()) + 1, x.shape[1], dtype=x.dtype).index_add(0, i, x)\nc = torch.bincount(i, minlength=len(m)).clamp(min=1)[:, None]\nctx.save_for_backward(i, c)\nreturn m / c",
        "i, c = ctx.saved_tensors\nreturn (g / c)[i], None",
        (
            ("(g / c)[i]", "g[i]", "factor|missing factor|1/N|wrong number"),
            ("(g / c)[i]", "(g / c)[i.roll(1)]", SHIFTED),
            ("(g / c)[i]", "(1 / c).expand_as(g)[i]", UPSTREAM),
        ),
    ),
    Backward(
        "circular convolution by fft",
        "x=n,e w=e",
        "ctx.save_for_backward(x, w)\nreturn torch.fft.irfft(torch.fft.rfft(x.double()) * torch.fft.rfft(w.double()), n=x.shape[1]).to(x.dtype)",
        "x, w = (t.double() for t in ctx.saved_tensors)\ng = g.double()\nG = torch.fft.rfft(g)\ndx = torch.fft.irfft(G * torch.fft.rfft(w).conj(), n=x.shape[1])\ndw = torch.fft.irfft((G * torch.fft.rfft(x).conj()).sum(0), n=x.shape[1])\nreturn dx.to(ctx.saved_tensors[0].dtype), dw.to(ctx.saved_tensors[0].dtype)",
        (
            ("torch.fft.rfft(w).conj()", "torch.fft.rfft(w)", "(missing function: .*conj|conjugate: )"),
            ("(G * torch.fft.rfft(x).conj()).sum(0)", "(G * torch.fft.rfft(x).conj()).mean(0)", MEAN),
            ("(G * torch.fft.rfft(x).conj()).sum(0)", "(G * torch.fft.rfft(x).conj())[0]", "reduction"),
        ),
    ),
    Backward(
        "gumbel softmax with given noise",
        "x=n,d u=n,d:p t=0.7",
        "y = ((x - (-u.log()).log()) / t).softmax(-1)\nctx.save_for_backward(y, u)\nctx.t = t\nreturn y",
        "y, u = ctx.saved_tensors\ndx = y * (g - (g * y).sum(-1, keepdim=True)) / ctx.t\nreturn dx, -dx / (u * u.log()), None",
        (
            (" / ctx.t", "", "factor|missing factor"),
            ("(g * y).sum(-1, keepdim=True)", "(g * y).sum(0, keepdim=True)", AXIS),
            (" / ctx.t", " * ctx.t", "operator|factor"),
            ("-dx / (u * u.log())", "-dx / u.log()", "missing factor|operator|factor"),
        ),
    ),
    Backward(
        "learned step size quantiser",
        "x=n,d s=d:+",
        "z = (x / s).detach()\nq = z.round().clamp(-2, 2)\nctx.save_for_backward(z, q, s)\nreturn s * (z - q)",
        "z, q, s = ctx.saved_tensors\ninside = (z.abs() <= 2.5)\nreturn g, (-g * q).sum(0)",
        (
            ("return g,", "return 2 * g,", "factor|extra factor|wrong number"),
            ("(-g * q).sum(0)", "(g * q).sum(0)", SIGN),
            ("(-g * q).sum(0)", "(-g * q).mean(0)", MEAN),
            ("(-g * q).sum(0)", "(-g * z).sum(0)", OPERAND + "|missing function"),
        ),
    ),
    Backward(
        "focal loss with logits, by target",
        "x=n,d y=n:<d",
        "p = x.softmax(-1)\np_y = p.gather(1, y[:, None])\nctx.save_for_backward(p, p_y, y)\nreturn -((1 - p_y)**2 * p_y.log()).squeeze(1)",
        "p, p_y, y = ctx.saved_tensors\nslope = 2 * (1 - p_y) * p_y * p_y.log() - (1 - p_y)**2\none_hot = torch.zeros_like(p).scatter(1, y[:, None], 1.0)\nreturn g[:, None] * slope * (one_hot - p), None",
        (
            ("2 * (1 - p_y) * p_y * p_y.log() - (1 - p_y)**2", "-(1 - p_y)**2", TERM),
            ("(one_hot - p)", "(-p)", "(missing|extra) term|region"),
            ("g[:, None] * slope", "slope", UPSTREAM),
            ("2 * (1 - p_y)", "(1 - p_y)", "factor|missing|wrong number"),
        ),
    ),
    Backward(
        "low-rank adapter",
        "x=n,d w=m,d a=k,d b=m,k",
        "h = x @ a.t()\nctx.save_for_backward(x, w, a, b, h)\nreturn x @ w.t() + 0.5 * h @ b.t()",
        "x, w, a, b, h = ctx.saved_tensors\nd = 0.5 * g @ b\nreturn g @ w + d @ a, g.t() @ x, d.t() @ x, 0.5 * g.t() @ h",
        (
            ("g @ w + d @ a", "g @ w", TERM),
            ("0.5 * g.t() @ h", "g.t() @ h", "factor|missing factor|wrong number"),
            (
                "g.t() @ x, d.t() @ x",
                "g.t() @ x, (x.t() @ x)[:len(a)]",
                "not recognised|missing|wrong|location|region|reduction",
            ),
        ),
    ),
    Backward(
        "pixel shuffle and a bias",
        "x=b,c,s,s w=n",
        "y = F.pixel_shuffle(x[:, :4], 2)\nctx.shape = x.shape\nctx.n = len(w)\nreturn y + w.mean()",
        "dx = torch.zeros(ctx.shape, dtype=g.dtype)\ndx[:, :4] = F.pixel_unshuffle(g, 2)\ndw = g.sum() / ctx.n\nreturn dx, dw.expand(ctx.n).clone()",
        (
            ("g.sum() / ctx.n", "g.sum()", "factor|1/N|missing factor|reduction|wrong number"),
            ("dx[:, :4] =", "dx[:, 1:5] =", SHIFTED + "|" + REGION),
            ("F.pixel_unshuffle(g, 2)", "F.pixel_unshuffle(g.mT, 2)", TRANSPOSED + "|extra function|missing function"),
        ),
    ),
    Backward(
        "log-bilinear gate in a custom style",
        "x=n,d w=d",
        "y = (x * w).exp() + 1\nctx.save_for_backward(x, w, y)\nreturn y.log()",
        "x, w, y = ctx.saved_tensors\nz = g * (1 - 1 / y)\nreturn z * w, (z * x).sum(0)",
        (
            ("(1 - 1 / y)", "(1 / y)", DERIVATIVE + "|missing term|wrong|operator"),
            ("(z * x).sum(0)", "(z * x).sum(0) / len(x)", MEAN),
            ("z * w,", "z + w,", "operator"),
        ),
    ),
    Backward(
        "masked mean pooling",
        "x=b,n,d m=b,n:01",
        "c = m.sum(1, keepdim=True)\nctx.save_for_backward(m, c)\nreturn (x * m[..., None]).sum(1) / c",
        "m, c = ctx.saved_tensors\nreturn (g / c)[:, None] * m[..., None], None",
        (
            (
                "(g / c)[:, None] * m[..., None]",
                "(g / c)[:, None] * torch.ones_like(m)[..., None]",
                "missing factor|region|missing",
            ),
            ("(g / c)[:, None]", "g[:, None] / m.shape[1]", "1/N|factor|wrong|epsilon|missing|operator|extra"),
            ("(g / c)[:, None]", "(1 / c)[:, None].expand(-1, -1, g.shape[1])", UPSTREAM),
        ),
    ),
)
