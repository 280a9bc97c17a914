"""Backward functions of geometry, statistics, graphs and images, with wrong versions of each: see `backwards`."""
# ruff: noqa: E501

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
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

NUMBER = r"(wrong number|factor): "
FUNCTION = r"(missing|extra|wrong) function: "
AREAS = (
    Backward(
        "inverse square root unit, negative side",
        "x=n,d alpha=1.4",
        "low = x.clamp(max=0)\nr = (1 + alpha * low * low).rsqrt()\nctx.save_for_backward(r)\nreturn x * r",
        "r, = ctx.saved_tensors\nreturn g * r**3, None",
        (
            ("g * r**3", "r**3", UPSTREAM),
            ("r**3", "r**2", rf"{NUMBER}|missing factor|missing function"),
        ),
    ),
    Backward(
        "Gaussian likelihood",
        "m=n s=n y=n",
        "e = (y - m) * (-s).exp()\nctx.save_for_backward(e, s)\nreturn (0.5 * e * e + s).mean()",
        "e, s = ctx.saved_tensors\nn = len(e)\ndm = -e * (-s).exp()\nds = 1 - e * e\nreturn g * dm / n, g * ds / n, -g * dm / n",
        (
            ("1 - e * e", "-e * e", TERM),
            ("dm = -e * (-s).exp()", "dm = -e", factor("")),
            ("dm = -e * (-s).exp()", "dm = -e * s.exp()", rf"{SIGN}|missing function|{OPERATOR}"),
            ("-g * dm / n", "g * dm / n", SIGN),
        ),
    ),
    Backward(
        "Poisson likelihood of log rates",
        "z=n,d y=n,d:w",
        "r = z.exp()\nctx.save_for_backward(r, y)\nreturn (r - y * z).mean(1).sum()",
        "r, y = ctx.saved_tensors\nreturn g * (r - y) / r.shape[1], None",
        (
            ("(r - y)", "r", TERM),
            ("r.shape[1]", "r.numel()", rf"{MEAN}|{NUMBER}"),
            ("(r - y)", "(r - y) * r", r"extra factor: |operator: "),
        ),
    ),
    Backward(
        "softmax over the edges of a node",
        "x=e i=e:<k",
        "h = x.exp()\nz = torch.zeros(3, dtype=x.dtype).index_add_(0, i, h)\np = h / z[i]\nctx.save_for_backward(p, i)\nreturn p",
        "p, i = ctx.saved_tensors\ngp = g * p\ns = torch.zeros(3, dtype=g.dtype).index_add_(0, i, gp)\nreturn gp - p * s[i], None",
        (
            ("gp - p * s[i]", "gp", TERM),
            ("p * s[i]", "s[i]", factor("output")),
            ("p * s[i]", "p * gp.sum()", r"reduction|wrong|shifted|location|missing"),
        ),
    ),
    Backward(
        "attention of a graph's edges",
        "x=n,d i=e:<n j=e:<n w=e",
        "m = w[:, None] * x[j]\nctx.save_for_backward(x, w, i, j)\nreturn torch.zeros_like(x).index_add_(0, i, m)",
        "x, w, i, j = ctx.saved_tensors\ngm = g[i]\ndw = (gm * x[j]).sum(1)\ndx = torch.zeros_like(x).index_add_(0, j, w[:, None] * gm)\nreturn dx, None, None, dw",
        (
            ("index_add_(0, j,", "index_add_(0, i,", rf"{OPERAND}|{SHIFTED}|{SWAPPED}"),
            ("gm = g[i]", "gm = g[j]", rf"{OPERAND}|{SHIFTED}|{SWAPPED}"),
            ("(gm * x[j]).sum(1)", "(gm * x[j]).mean(1)", MEAN + "|reduction"),
        ),
    ),
    Backward(
        "Householder reflection",
        "x=n,d v=d",
        "a, b = x @ v, v @ v\nctx.save_for_backward(x, v, a, b)\nreturn x - 2 * torch.outer(a, v) / b",
        "x, v, a, b = ctx.saved_tensors\nc = g @ v\ndx = g - 2 * torch.outer(c, v) / b\ndv = -2 / b * (x.t() @ c + g.t() @ a - 2 * (a @ c) * v / b)\nreturn dx, dv",
        (
            ("x.t() @ c + g.t() @ a", "x.t() @ c", TERM),
            ("- 2 * (a @ c) * v / b", "- (a @ c) * v / b", FACTOR + "|wrong number|missing"),
            ("g - 2 * torch.outer(c, v) / b", "g - 2 * torch.outer(c, v)", factor("")),
            ("g - 2", "g + 2", SIGN + "|" + OPERATOR),
        ),
    ),
    Backward(
        "gram matrix of features",
        "f=c,s",
        "ctx.save_for_backward(f)\nreturn f @ f.t() / f.numel()",
        "f, = ctx.saved_tensors\nreturn (g + g.t()) @ f / f.numel()",
        (
            ("(g + g.t())", "g", TERM),
            ("(g + g.t())", "2 * g", r"wrong|missing|transpose|operand|location|extra"),
            ("/ f.numel()", "/ f.shape[1]", rf"{MEAN}|{NUMBER}"),
        ),
    ),
    Backward(
        "total variation of rows and columns",
        "x=n,s",
        "a, b = x[1:] - x[:-1], x[:, 1:] - x[:, :-1]\nctx.save_for_backward(a, b)\nctx.shape = x.shape\nreturn (a * a).sum() + (b * b).sum()",
        "a, b = ctx.saved_tensors\ndx = a.new_zeros(ctx.shape)\ndx[1:] += 2 * a\ndx[:-1] -= 2 * a\ndx[:, 1:] += 2 * b\ndx[:, :-1] -= 2 * b\nreturn g * dx",
        (
            ("dx[:, :-1] -= 2 * b\n", "", TERM),
            ("dx[:-1] -= 2 * a", "dx[:-1] += 2 * a", OPERATOR + "|" + SIGN),
            ("dx[:, 1:] += 2 * b", "dx[:, 1:] += b", FACTOR + "|wrong number|missing"),
            ("g * dx", "dx", UPSTREAM),
        ),
    ),
    Backward(
        "contrastive pair",
        "a=n,d b=n,d t=n:01 margin=4.5",
        "e = a - b\nr = (e * e).sum(1).sqrt()\nh = (margin - r).clamp(min=0)\nctx.save_for_backward(e, r, h, t)\nreturn (t * r * r + (1 - t) * h * h).mean()",
        "e, r, h, t = ctx.saved_tensors\ndr = 2 * (t * r - (1 - t) * h)\nda = g * (dr / r)[:, None] * e / len(r)\nreturn da, -da, None, None",
        (
            ("t * r - (1 - t) * h", "t * r + (1 - t) * h", SIGN + "|" + OPERATOR + "|" + REGION),
            ("(dr / r)", "dr", factor("")),
            (" / len(r)", "", MEAN),
            ("da, -da", "da, da", SIGN),
        ),
    ),
    Backward(
        "additive angular margin",
        "c=n,m t=n,m:01 s=2.5",
        "z = s * (0.9 * torch.tanh(c) - 0.2 * t)\nctx.save_for_backward(c)\nctx.s = s\nreturn z",
        "c, = ctx.saved_tensors\nd = 1 - c.tanh()**2\nreturn 0.9 * ctx.s * g * d, None, None",
        (
            ("0.9 * ctx.s * g * d", "0.9 * g * d", factor("") + "|" + FACTOR),
            ("c.tanh()**2", "c**2", FUNCTION),
            ("1 - c.tanh()**2", "1 - c.tanh()", r"missing (factor|function)|wrong number"),
        ),
    ),
    Backward(
        "maxout of pairs",
        "x=n,e",
        "a, b = x.chunk(2, 1)\nctx.save_for_backward(a > b)\nreturn torch.maximum(a, b)",
        "m, = ctx.saved_tensors\nreturn torch.cat([g * m, g * ~m], 1)",
        (
            ("[g * m, g * ~m]", "[g * ~m, g * m]", SWAPPED + "|" + OPERATOR + "|region|.*flip"),
            ("g * ~m", "g", factor("") + "|" + REGION),
        ),
    ),
    Backward(
        "concatenated rectifiers",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn torch.cat([x.clamp(min=0), (-x).clamp(min=0)], 1)",
        "x, = ctx.saved_tensors\na, b = g.chunk(2, 1)\nreturn a * (x > 0) - b * (x < 0)",
        (
            ("a * (x > 0) - b", "a * (x > 0) + b", SIGN + "|" + OPERATOR),
            ("- b * (x < 0)", "", TERM),
            ("a * (x > 0)", "b * (x > 0)", OPERAND + "|" + REGION + "|" + SWAPPED),
        ),
    ),
    Backward(
        "cumulative product",
        "x=n,s:+",
        "y = x.cumprod(1)\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nw = (g * y).flip(1).cumsum(1).flip(1)\nreturn w / x",
        (
            ("w / x", "w", factor("`x`")),
            ("(g * y)", "g", factor("output")),
            (".flip(1).cumsum(1).flip(1)", ".cumsum(1)", FUNCTION + "|" + SHIFTED),
        ),
    ),
    Backward(
        "cumulative log of sums",
        "x=n,s",
        "y = x.logcumsumexp(1)\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nw = g * (-y).exp()\nreturn x.exp() * w.flip(1).cumsum(1).flip(1)",
        (
            ("g * (-y).exp()", "g", factor("")),
            ("x.exp() *", "y.exp() *", OPERAND),
            ("w.flip(1).cumsum(1).flip(1)", "w.flip(1).cumsum(1)", FUNCTION + "|" + SHIFTED),
        ),
    ),
    Backward(
        "bilinear sampling of a row",
        "f=n,s",
        "p = torch.linspace(0.3, f.shape[1] - 1.4, 5, dtype=torch.float64)\ni = p.floor().long()\nt = (p - i).to(f.dtype)\nctx.save_for_backward(i, t)\nctx.shape = f.shape\nreturn f[:, i] * (1 - t) + f[:, i + 1] * t",
        "i, t = ctx.saved_tensors\nd = g.new_zeros(ctx.shape)\nd.index_add_(1, i, g * (1 - t))\nd.index_add_(1, i + 1, g * t)\nreturn d",
        (
            ("g * (1 - t)", "g * t", OPERAND + "|missing term|" + REGION),
            ("d.index_add_(1, i + 1, g * t)\n", "", TERM),
            ("i + 1", "i", SHIFTED + "|missing term|wrong number"),
        ),
    ),
    Backward(
        "rotation of points in the plane",
        "x=n a=n t=n",
        "c, s = t.cos(), t.sin()\nctx.save_for_backward(x, a, c, s)\nreturn c * x - s * a, s * x + c * a",
        "x, a, c, s = ctx.saved_tensors\ndt = -g * (s * x + c * a) + gc * (c * x - s * a)\nreturn c * g + s * gc, c * gc - s * g, dt",
        (
            ("c * g + s * gc", "c * g - s * gc", SIGN + "|" + OPERATOR),
            ("c * gc - s * g,", "c * g - s * gc,", SWAPPED + "|" + OPERAND + "|.*"),
            ("-g * (s * x + c * a) +", "g * (s * x + c * a) +", SIGN),
            ("(c * x - s * a)\n", "(c * x + s * a)\n", SIGN + "|" + OPERATOR),
        ),
    ),
    Backward(
        "solution of a linear system",
        "w=k,k b=k,m",
        "a = w + 4 * torch.eye(len(w), dtype=w.dtype)\nx = torch.linalg.solve(a.double(), b.double()).to(b.dtype)\nctx.save_for_backward(a, x)\nreturn x",
        "a, x = ctx.saved_tensors\ndb = torch.linalg.solve(a.double().t(), g.double()).to(g.dtype)\nreturn -db @ x.t(), db",
        (
            ("a.double().t()", "a.double()", TRANSPOSED),
            ("-db @ x.t()", "db @ x.t()", SIGN),
            ("-db @ x.t()", "-(db @ x.t()).t()", TRANSPOSED + "|" + SWAPPED),
        ),
    ),
    Backward(
        "inverse of a matrix",
        "w=k,k",
        "a = w + 4 * torch.eye(len(w), dtype=w.dtype)\ny = a.double().inverse().to(w.dtype)\nctx.save_for_backward(y)\nreturn y",
        "y, = ctx.saved_tensors\nreturn -y.t() @ g @ y.t()",
        (
            ("-y.t() @ g @ y.t()", "-y @ g @ y.t()", TRANSPOSED),
            ("-y.t()", "y.t()", SIGN),
            ("@ y.t()", "@ y", TRANSPOSED),
        ),
    ),
    Backward(
        "quadratic form of a symmetric part",
        "x=n,d w=d,d",
        "s = 0.5 * (w + w.t())\nctx.save_for_backward(x, s)\nreturn ((x @ s) * x).sum(1)",
        "x, s = ctx.saved_tensors\nu = g[:, None]\nds = x.t() @ (u * x)\nreturn 2 * u * (x @ s), 0.5 * (ds + ds.t())",
        (
            ("2 * u", "u", FACTOR),
            ("x.t() @ (u * x)", "x.t() @ x", UPSTREAM),
            ("0.5 * (ds + ds.t())", "ds + ds.t()", FACTOR + "|missing factor|wrong number"),
        ),
    ),
    Backward(
        "ranked probability score of a normal",
        "m=n s=n:+ y=n:w",
        "z = (y - m) / s\np, c = (-0.5 * z * z).exp() * 0.3989422804, 0.5 * (1 + torch.erf(z * 0.7071067812))\nctx.save_for_backward(z, p, c)\nreturn s * (z * (2 * c - 1) + 2 * p - 0.5641895835)",
        "z, p, c = ctx.saved_tensors\ndm = 1 - 2 * c\nds = 2 * p - 0.5641895835\nreturn g * dm, g * ds, None",
        (
            ("1 - 2 * c", "1 - c", FACTOR + "|wrong number|missing"),
            ("2 * p - 0.5641895835", "2 * p", TERM),
            ("1 - 2 * c", "2 * c - 1", SIGN),
        ),
    ),
    Backward(
        "gated sums of experts",
        "x=n,d w=k,d,m r=n,k",
        "p = r.softmax(1)\ny = torch.einsum('nd,kdm->nkm', x, w)\nctx.save_for_backward(x, w, p, y)\nreturn torch.einsum('nk,nkm->nm', p, y)",
        "x, w, p, y = ctx.saved_tensors\ndy = p[:, :, None] * g[:, None]\ndp = (y * g[:, None]).sum(2)\ndr = p * (dp - (p * dp).sum(1, keepdim=True))\ndx = torch.einsum('nkm,kdm->nd', dy, w)\ndw = torch.einsum('nkm,nd->kdm', dy, x)\nreturn dx, dw, dr",
        (
            ("p[:, :, None] * g[:, None]", "g[:, None].expand_as(y)", factor("")),
            ("dp - (p * dp).sum(1, keepdim=True)", "dp", TERM),
            ("(p * dp).sum(1,", "(p * dp).sum(0,", AXIS),
            ("dy, w)", "y, w)", OPERAND),
        ),
    ),
    Backward(
        "reversed cumulative maximum, smooth",
        "x=n,s t=0.6",
        "rows, h = [], torch.full_like(x[:, 0], -3.0)\nfor i in range(x.shape[1]):\n    h = t * torch.logaddexp(h / t, x[:, i] / t)\n    rows.append(h)\ny = torch.stack(rows, 1)\nctx.save_for_backward(x, y)\nctx.t = t\nreturn y",
        "x, y = ctx.saved_tensors\ndx, dh = torch.zeros_like(x), torch.zeros_like(x[:, 0])\nfor i in reversed(range(x.shape[1])):\n    dh = dh + g[:, i]\n    p = ((x[:, i] - y[:, i]) / ctx.t).exp()\n    dx[:, i] = dh * p\n    dh = dh * (1 - p)\nreturn dx, None",
        (
            ("    dh = dh * (1 - p)\n", "", factor("") + "|" + TERM),
            ("dh = dh + g[:, i]", "dh = g[:, i]", TERM),
            (") / ctx.t).exp()", ")).exp()", FACTOR + "|missing factor"),
            ("reversed(range(x.shape[1]))", "range(x.shape[1])", r".*(revers|order|backwards|last)"),
        ),
    ),
    Backward(
        "linear attention by a running state",
        "q=s,k k=s,k v=s,d",
        "m, rows = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), []\nfor i in range(len(q)):\n    m = m + torch.outer(k[i], v[i])\n    rows.append(q[i] @ m)\nctx.save_for_backward(q, k, v)\nreturn torch.stack(rows)",
        "q, k, v = ctx.saved_tensors\ndq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)\nm, dm = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype)\nfor i in range(len(q)):\n    m = m + torch.outer(k[i], v[i])\n    dq[i] = m @ g[i]\nfor i in reversed(range(len(q))):\n    dm = dm + torch.outer(q[i], g[i])\n    dk[i] = dm @ v[i]\n    dv[i] = k[i] @ dm\nreturn dq, dk, dv",
        (
            ("dm = dm + torch.outer(q[i], g[i])", "dm = torch.outer(q[i], g[i])", TERM),
            ("dk[i] = dm @ v[i]", "dk[i] = dm @ g[i]", OPERAND),
            ("in reversed(range(len(q)))", "in range(len(q))", r".*(revers|order|backwards|last)"),
        ),
    ),
    Backward(
        "leaky integrator with a reset",
        "x=s,d a=d:p",
        "v, rows = torch.zeros_like(a), []\nfor row in x:\n    v = a * v * (v < 0.8).to(v) + row\n    rows.append(v)\ny = torch.stack(rows)\nctx.save_for_backward(y, a)\nreturn y",
        "y, a = ctx.saved_tensors\ndx, da, dv = torch.zeros_like(y), torch.zeros_like(a), torch.zeros_like(a)\nfor t in reversed(range(len(y))):\n    dv = dv + g[t]\n    dx[t] = dv\n    if t:\n        on = (y[t - 1] < 0.8).to(a)\n        da = da + dv * on * y[t - 1]\n        dv = dv * on * a\nreturn dx, da",
        (
            ("dv = dv * on * a", "dv = dv * a", factor("") + "|" + REGION),
            ("dv * on * y[t - 1]", "dv * on * y[t]", SHIFTED + "|wrong operand"),
            ("da = da + dv * on", "da = dv * on", TERM + "|reduction|operator"),
        ),
    ),
    Backward(
        "product of quaternions",
        "p=n,e q=n,e",
        "def mul(a, b):\n    a, b = a[:, :4].unbind(1), b[:, :4].unbind(1)\n    return torch.stack([a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3], a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2], a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1], a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0]], 1)\nctx.save_for_backward(p, q)\nctx.mul = mul\nreturn mul(p, q)",
        "p, q = ctx.saved_tensors\nflip = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=g.dtype)\npc, qc = p[:, :4] * flip, q[:, :4] * flip\ndp, dq = torch.zeros_like(p), torch.zeros_like(q)\ndp[:, :4], dq[:, :4] = ctx.mul(g, qc), ctx.mul(pc, g)\nreturn dp, dq",
        (
            ("ctx.mul(g, qc)", "ctx.mul(g, q)", r".*(conj|`flip`|flip)|missing factor"),
            ("ctx.mul(pc, g)", "ctx.mul(g, pc)", rf"{SWAPPED}|{REGION}.*but the first column"),
        ),
    ),
    Backward(
        "lengths of packed sequences, mean",
        "x=b,s,d n=b:<s",
        "n = n.clamp(min=1)\nm = (torch.arange(x.shape[1]) < n[:, None]).to(x)\nctx.save_for_backward(m, n)\nreturn (x * m[..., None]).sum(1) / n[:, None].to(x)",
        "m, n = ctx.saved_tensors\nreturn (g / n[:, None].to(g))[:, None] * m[..., None], None",
        (
            (
                "* m[..., None]",
                "* torch.ones_like(m)[..., None]",
                factor("") + "|" + REGION + "|extra function|wrong function",
            ),
            ("(g / n[:, None].to(g))", "(g / m.shape[1])", r"missing|wrong|1/N|factor"),
        ),
    ),
    Backward(
        "structural similarity of rows",
        "x=n,s y=n,s",
        "a, b = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)\nu, v = 2 * (a * b).mean(1) + 0.03, (a * a).mean(1) + (b * b).mean(1) + 0.03\nctx.save_for_backward(a, b, u, v)\nreturn u / v",
        "a, b, u, v = ctx.saved_tensors\nn = a.shape[1]\nk = (g / v)[:, None] * 2 / n\nr = (u / v)[:, None]\nreturn k * (b - r * a), k * (a - r * b)",
        (
            ("k * (b - r * a)", "k * b", TERM),
            ("* 2 / n", "/ n", FACTOR + "|wrong number|missing"),
            ("k * (a - r * b)", "k * (a - b)", factor("")),
            ("(g / v)", "g", factor("")),
        ),
    ),
    Backward(
        "pairwise distances",
        "x=n,d y=m,d",
        "e = x[:, None] - y\nr = (e * e).sum(2).sqrt()\nctx.save_for_backward(e, r)\nreturn r",
        "e, r = ctx.saved_tensors\nw = (g / r)[..., None] * e\nreturn w.sum(1), -w.sum(0)",
        (
            ("w.sum(1), -w.sum(0)", "w.sum(1), w.sum(0)", SIGN),
            ("(g / r)", "g", factor("output")),
            ("(g / r)", "(1 / r)", UPSTREAM),
            ("w.sum(1), ", "w.mean(1), ", MEAN + "|reduction"),
        ),
    ),
    Backward(
        "stick breaking",
        "x=n,s",
        "v = x.sigmoid()\nr = torch.cumprod(1 - v, 1)\nbefore = torch.cat([torch.ones_like(v[:, :1]), r[:, :-1]], 1)\nw = v * before\nctx.save_for_backward(v, before, w)\nreturn w",
        "v, before, w = ctx.saved_tensors\ngw = g * w\nafter = gw.flip(1).cumsum(1).flip(1) - gw\ndv = g * before - after / (1 - v)\nreturn dv * v * (1 - v)",
        (
            ("dv * v * (1 - v)", "dv", factor("")),
            (".flip(1) - gw", ".flip(1)", rf"{TERM}|.*missing as a term"),
            ("after / (1 - v)", "after", factor("")),
        ),
    ),
    Backward(
        "periodic Laplacian",
        "u=n,s k=s:+",
        "l = u.roll(1, 1) + u.roll(-1, 1) - 2 * u\nctx.save_for_backward(l, k)\nreturn k * l",
        "l, k = ctx.saved_tensors\nh = g * k\nreturn h.roll(1, 1) + h.roll(-1, 1) - 2 * h, (g * l).sum(0)",
        (
            ("- 2 * h", "- h", FACTOR + "|wrong number|missing"),
            ("h = g * k", "h = g", factor("`k`")),
            ("(g * l).sum(0)", "(g * l)[0]", NO_SUM + "|reduction|missing"),
            ("h.roll(1, 1) + h.roll(-1, 1)", "h.roll(1, 1) + h.roll(1, 1)", SHIFTED + "|sign|wrong number"),
        ),
    ),
)
