"""Backward functions as authors write them in whole, with wrong versions of each: see `sources`."""

from __future__ import annotations

from tests.mutants.sources import Source

AUTHORS = (
    Source(
        "flash",
        "r(n,e), r(n,e), r(n,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, q, k, v, scale=0.5):
        s = scale * (q @ k.t())
        lse = torch.logsumexp(s, dim=-1, keepdim=True)
        p = torch.exp(s - lse)
        o = p @ v
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.scale = scale
        return o
    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse = ctx.saved_tensors
        delta = (do * o).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        step = 2
        for start in range(0, k.shape[0], step):
            kb, vb = k[start:start + step], v[start:start + step]
            p = torch.exp(ctx.scale * (q @ kb.t()) - lse)
            dv[start:start + step] = p.t() @ do
            dp = do @ vb.t()
            ds = p * (dp - delta)
            dq += ctx.scale * (ds @ kb)
            dk[start:start + step] = ctx.scale * (ds.t() @ q)
        return dq, dk, dv, None
""",
        (
            ("dq += ctx.scale * (ds @ kb)", "dq = ctx.scale * (ds @ kb)", "operator|missing term|reduction"),
            ("ds = p * (dp - delta)", "ds = p * dp", "missing term|extra|location"),
            ("ctx.scale * (ds.t() @ q)", "(ds.t() @ q)", "factor|missing factor"),
            ("(do * o).sum(-1, keepdim=True)", "(do * v).sum(-1, keepdim=True)", "wrong operand"),
        ),
    ),
    Source(
        "gemma rms",
        "r(n,d), r(d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x, w, eps=1e-3):
        rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, w, rstd)
        return x * rstd * (1 + w)
    @staticmethod
    def backward(ctx, dy):
        x, w, rstd = ctx.saved_tensors
        xhat = x * rstd
        dw = (dy * xhat).sum(dim=tuple(range(dy.ndim - 1)))
        wdy = dy * (1 + w)
        c = (xhat * wdy).sum(-1, keepdim=True) / x.shape[-1]
        dx = (wdy - xhat * c) * rstd
        return dx, dw, None
""",
        (
            ("wdy = dy * (1 + w)", "wdy = dy * w", "missing term|wrong"),
            (" / x.shape[-1]", "", "1/N|factor|missing|reduction"),
            ("(wdy - xhat * c) * rstd", "(wdy - x * c) * rstd", "wrong operand|missing factor"),
            ("(dy * xhat).sum(dim", "(dy * xhat).mean(dim", "1/N|reduction"),
        ),
    ),
    Source(
        "glu chunk",
        "r(n,2*d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x):
        a, b = x.chunk(2, dim=-1)
        s = torch.sigmoid(b)
        ctx.save_for_backward(a, s)
        return a * s
    @staticmethod
    def backward(ctx, grad):
        a, s = ctx.saved_tensors
        ga = grad * s
        gb = grad * a * s * (1 - s)
        return torch.cat([ga, gb], dim=-1)
""",
        (
            ("torch.cat([ga, gb]", "torch.cat([gb, ga]", "swapped"),
            ("grad * a * s * (1 - s)", "grad * a * s", "missing factor"),
            ("grad * a * s * (1 - s)", "grad * s * (1 - s)", "missing factor"),
        ),
    ),
    Source(
        "grouped linear",
        "r(b,4,d), r(4,d,m)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.einsum("bgi,gio->bgo", x, w)
    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx = torch.einsum("bgo,gio->bgi", dy, w)
        dw = torch.einsum("bgi,bgo->gio", x, dy)
        return dx, dw
""",
        (
            (
                'dw = torch.einsum("bgi,bgo->gio", x, dy)',
                'dw = torch.einsum("bgi,bgo->gio", x, dy) / x.shape[0]',
                "1/N|factor|extra",
            ),
            (
                '"bgo,gio->bgi", dy, w)',
                '"bgo,gio->bgi", dy, w.flip(0))',
                "extra function|shifted|flip|location|wrong operand",
            ),
        ),
    ),
    Source(
        "log sinkhorn half",
        "r(n,d), r(n)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, c, f):
        eps = 0.5
        z = (f[:, None] - c) / eps
        gpot = -eps * torch.logsumexp(z, dim=0)
        ctx.save_for_backward(torch.softmax(z, dim=0))
        return gpot
    @staticmethod
    def backward(ctx, grad):
        p, = ctx.saved_tensors
        dc = p * grad[None, :]
        df = -(p * grad[None, :]).sum(1)
        return dc, df
""",
        (
            ("df = -(p", "df = (p", "sign"),
            (".sum(1)", ".mean(1)", "1/N|reduction"),
            ("dc = p * grad[None, :]", "dc = -p * grad[None, :]", "sign"),
            ("dc = p * grad[None, :]", "dc = p", "missing factor: .*upstream"),
        ),
    ),
    Source(
        "rbf kan",
        "r(n,d), r(d,m,3)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x, w):
        grid = torch.linspace(-1, 1, 3, dtype=torch.float64).to(x.dtype)
        h = 0.8
        phi = torch.exp(-((x[..., None] - grid) / h) ** 2)
        ctx.save_for_backward(x, w, phi, grid)
        ctx.h = h
        return torch.einsum("nik,iok->no", phi, w)
    @staticmethod
    def backward(ctx, gy):
        x, w, phi, grid = ctx.saved_tensors
        gphi = torch.einsum("no,iok->nik", gy, w)
        gw = torch.einsum("no,nik->iok", gy, phi)
        dphi = -2 * (x[..., None] - grid) / ctx.h ** 2 * phi
        return (gphi * dphi).sum(-1), gw
""",
        (
            ("/ ctx.h ** 2", "/ ctx.h", "missing|factor|wrong number|operator"),
            ("dphi = -2", "dphi = 2", "sign"),
            ("* phi\n", "\n", "missing factor"),
            ("-2 * (x[..., None] - grid)", "-2 * (x[..., None] + grid)", "operator|sign"),
        ),
    ),
    Source(
        "euler adjoint",
        "r(n,d), r(d,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, z0, a):
        h, zs = 0.25, [z0]
        for _ in range(3):
            zs.append(zs[-1] + h * torch.tanh(zs[-1] @ a))
        ctx.save_for_backward(a, *zs)
        ctx.h = h
        return zs[-1]
    @staticmethod
    def backward(ctx, adj):
        a, *zs = ctx.saved_tensors
        ga = torch.zeros_like(a)
        for z in reversed(zs[:-1]):
            t = torch.tanh(z @ a)
            v = ctx.h * adj * (1 - t * t)
            ga = ga + z.t() @ v
            adj = adj + v @ a.t()
        return adj, ga
""",
        (
            ("adj = adj + v @ a.t()", "adj = v @ a.t()", "missing term"),
            ("reversed(zs[:-1])", "reversed(zs[1:])", "shifted|wrong|not recognised"),
            ("v = ctx.h * adj", "v = adj", "factor|missing factor"),
            ("v @ a.t()", "v @ a", "transpose"),
            ("reversed(zs[:-1])", "zs[:-1]", "order|not recognised|extra|missing|wrong"),
        ),
    ),
    Source(
        "sparsemax",
        "r(n,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, z, dim=-1):
        zs, _ = torch.sort(z, dim=dim, descending=True)
        k = torch.arange(1, z.shape[dim] + 1, dtype=z.dtype)
        cs = zs.cumsum(dim) - 1
        support = (k * zs > cs).sum(dim, keepdim=True)
        tau = cs.gather(dim, support - 1) / support.to(z.dtype)
        p = (z - tau).clamp(min=0)
        ctx.save_for_backward(p, support)
        ctx.dim = dim
        return p
    @staticmethod
    def backward(ctx, grad):
        p, support = ctx.saved_tensors
        gi = grad.clone()
        gi[p == 0] = 0
        v = gi.sum(ctx.dim, keepdim=True) / support.to(gi.dtype)
        return torch.where(p != 0, gi - v, gi), None
""",
        (
            (" / support.to(gi.dtype)", " / p.shape[ctx.dim]", "wrong|missing|1/N|factor|not recognised|operator"),
            ("torch.where(p != 0, gi - v, gi)", "gi - v", "region|missing|extra"),
            ("        gi[p == 0] = 0\n", "", "region|missing|location|not recognised|wrong"),
            ("gi - v, gi", "gi + v, gi", "sign|operator"),
        ),
    ),
    Source(
        "weight norm",
        "r(m,d), r(m)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, v, g):
        n = v.norm(dim=1, keepdim=True)
        ctx.save_for_backward(v, g, n)
        return v * (g[:, None] / n)
    @staticmethod
    def backward(ctx, gw):
        v, g, n = ctx.saved_tensors
        u = v / n
        gg = (gw * u).sum(1)
        gv = g[:, None] / n * (gw - gg[:, None] * u)
        return gv, gg
""",
        (
            ("(gw - gg[:, None] * u)", "gw", "missing term"),
            ("gg[:, None] * u)", "gg[:, None] * v)", "wrong operand|missing"),
            ("g[:, None] / n * (gw", "g[:, None] * (gw", "missing|operator|factor"),
            ("(gw * u).sum(1)\n", "(gw * v).sum(1)\n", "wrong operand|missing"),
        ),
    ),
    Source(
        "gru cell",
        "r(n,d), r(n,d), r(d,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x, h, w):
        z = torch.sigmoid(x + h)
        c = torch.tanh(x + h @ w)
        ctx.save_for_backward(h, w, z, c)
        return (1 - z) * h + z * c
    @staticmethod
    def backward(ctx, g):
        h, w, z, c = ctx.saved_tensors
        dz = g * (c - h) * z * (1 - z)
        dc = g * z * (1 - c * c)
        dx = dz + dc
        dh = g * (1 - z) + dz + dc @ w.t()
        dw = h.t() @ dc
        return dx, dh, dw
""",
        (
            ("dh = g * (1 - z) + dz + dc @ w.t()", "dh = g * (1 - z) + dz", "missing term"),
            ("dh = g * (1 - z) + dz + dc @ w.t()", "dh = dz + dc @ w.t()", "missing term"),
            ("(c - h)", "(h - c)", "sign|swapped"),
            ("(c - h)", "c", "missing term"),
            ("dx = dz + dc", "dx = dc", "missing term"),
            ("1 - c * c", "1 - z * z", "wrong operand|not recognised|wrong"),
        ),
    ),
    Source(
        "info nce",
        "r(n,d), r(n,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, a, b, tau=0.5):
        s = a @ b.t() / tau
        p = s.softmax(1)
        ctx.save_for_backward(a, b, p)
        ctx.tau = tau
        return -s.log_softmax(1).diagonal().mean()
    @staticmethod
    def backward(ctx, g):
        a, b, p = ctx.saved_tensors
        ds = (p - torch.eye(len(a), dtype=p.dtype)) / len(a) * g
        return ds @ b / ctx.tau, ds.t() @ a / ctx.tau, None
""",
        (
            ("(p - torch.eye(len(a), dtype=p.dtype))", "p", "missing term|not recognised"),
            (" / len(a) * g", " * g", "1/N"),
            ("ds.t() @ a / ctx.tau", "ds @ a / ctx.tau", "transpose"),
            ("ds @ b / ctx.tau", "ds @ b", "factor|missing factor"),
            (" * g\n", "\n", "missing factor: .*upstream"),
        ),
    ),
    Source(
        "pinball",
        "r(n,d), c(n,d)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, pred, y, q=0.3):
        e = y - pred
        ctx.save_for_backward(e)
        ctx.q = q
        return torch.maximum(q * e, (q - 1) * e).mean()
    @staticmethod
    def backward(ctx, g):
        e, = ctx.saved_tensors
        d = torch.where(e > 0, -ctx.q * torch.ones_like(e), 1 - ctx.q)
        return g * d / e.numel(), None, None
""",
        (
            ("-ctx.q * torch.ones_like(e), 1 - ctx.q", "ctx.q * torch.ones_like(e), ctx.q - 1", "sign"),
            ("1 - ctx.q", "ctx.q", "region|missing|wrong|operator"),
            ("e > 0", "e < 0", "operator|swapped"),
            ("-ctx.q * torch.ones_like(e), 1 - ctx.q", "-ctx.q, 1 - ctx.q", "number type"),  # float32 of PyTorch's own
            (" / e.numel()", " / e.shape[0]", "1/N|factor"),
        ),
    ),
    Source(
        "conv im2col bias",
        "r(b,2,5,5), r(3,2,3,3), r(3)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, x, w, bias):
        cols = F.unfold(x, 3, padding=1)
        out = w.flatten(1) @ cols + bias[:, None]
        ctx.save_for_backward(cols, w)
        ctx.hw = x.shape[2:]
        return out.view(x.shape[0], w.shape[0], *x.shape[2:])
    @staticmethod
    def backward(ctx, g):
        cols, w = ctx.saved_tensors
        g = g.flatten(2)
        gx = F.fold(w.flatten(1).t() @ g, ctx.hw, 3, padding=1)
        gw = (g @ cols.transpose(1, 2)).sum(0).view_as(w)
        return gx, gw, g.sum((0, 2))
""",
        (
            ("g.sum((0, 2))", "g.mean((0, 2))", "1/N|reduction"),
            ("(g @ cols.transpose(1, 2)).sum(0)", "(g @ cols.transpose(1, 2)).mean(0)", "1/N|reduction|factor"),
            ("(g @ cols.transpose(1, 2)).sum(0)", "(g @ cols.transpose(1, 2))[0]", "reduction|missing|shifted"),
            ("gx = F.fold(w.flatten(1).t() @ g", "gx = F.fold(w.flip(3).flatten(1).t() @ g", "extra function|flip"),
        ),
    ),
    Source(
        "cross product loss",
        "r(n,3), r(n,3)",
        """
class Own(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.linalg.cross(a, b)
    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return torch.linalg.cross(b, g), torch.linalg.cross(g, a)
""",
        (
            ("torch.linalg.cross(b, g),", "torch.linalg.cross(g, b),", "sign|swapped"),
            ("torch.linalg.cross(g, a)", "torch.linalg.cross(g, b)", "wrong operand"),
            (
                "torch.linalg.cross(b, g), torch.linalg.cross(g, a)",
                "torch.linalg.cross(g, a), torch.linalg.cross(b, g)",
                "swapped",
            ),
        ),
    ),
)
