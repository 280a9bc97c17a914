"""Backward functions of losses and of what they are made of, with wrong versions of each: see `backwards`."""

from __future__ import annotations

from tests.mutants.backwards import (
    AXIS,
    FACTOR,
    MEAN,
    ONE_HOT,
    OPERAND,
    OPERATOR,
    REGION,
    SIGN,
    TERM,
    UPSTREAM,
    Backward,
    factor,
)

LOSSES = (
    Backward(
        "weighted squared error",
        "x=n,d y=n,d w=n,d:w",
        "ctx.save_for_backward(x, y, w)\nreturn (w * (x - y)**2).mean()",
        "x, y, w = ctx.saved_tensors\nn = x.numel()\ndx = 2 * g * w * (x - y) / n\nreturn dx, -dx, None",
        (
            ("2 * g * w * (x - y) / n", "2 * g * (x - y) / n", factor("`w`")),
            (" / n", "", MEAN),
            ("2 * g * w", "g * w", FACTOR),
            ("dx, -dx", "dx, dx", SIGN),
            ("(x - y)", "(x + y)", r"(operator|sign): "),
            ("2 * g * w", "2 * w", UPSTREAM),
        ),
    ),
    Backward(
        "binary cross-entropy with logits",
        "z=n,d t=n,d:01 w=d:w",
        "ctx.save_for_backward(z, t, w)\nreturn (w * (z.exp().log1p() - z * t)).sum(1)",
        "z, t, w = ctx.saved_tensors\np = z.sigmoid()\nerror = p - t\nreturn g[:, None] * w * error, None, None",
        (
            ("p - t", "p", TERM),
            ("g[:, None] * w * error", "g[:, None] * error", factor("`w`")),
            ("g[:, None] * w * error", "w * error", UPSTREAM),
            ("p - t", "t - p", SIGN),
        ),
    ),
    Backward(
        "binary cross-entropy",
        "p=n,d:p t=n,d:01",
        "ctx.save_for_backward(p, t)\nreturn -(t * p.log() + (1 - t) * (1 - p).log()).mean()",
        "p, t = ctx.saved_tensors\npositive = -t / p\nnegative = (1 - t) / (1 - p)\n"
        "return g * (positive + negative) / p.numel(), None",
        (
            ("positive + negative", "positive", rf"({TERM}|{REGION}.*`t`)"),
            ("/ p.numel()", "/ len(p)", r"(1/N|wrong number|factor): "),
            ("(1 - t) / (1 - p)", "(1 - t) * (1 - p)", r"(operator|region): "),
        ),
    ),
    Backward(
        "huber",
        "x=n,d y=n,d delta=0.8",
        "e = x - y\nctx.save_for_backward(e)\nctx.delta = delta\n"
        "return torch.where(e.abs() < delta, e**2 / 2, delta * (e.abs() - delta / 2)).sum(1)",
        "e, = ctx.saved_tensors\nsmall = e.abs() < ctx.delta\n"
        "de = torch.where(small, e, ctx.delta * e.sign())\nreturn g[:, None] * de, -g[:, None] * de, None",
        (
            ("ctx.delta * e.sign()", "e.sign()", r"(missing factor|factor|region): .*(delta|0.8)"),
            ("ctx.delta * e.sign()", "ctx.delta", r"(missing factor|region|wrong operand): "),
            ("-g[:, None] * de", "g[:, None] * de", SIGN),
            ("return g[:, None] * de", "return de.clone()", UPSTREAM),
        ),
    ),
    Backward(
        "cross-entropy",
        "z=n,c t=n:<c",
        "p = z.softmax(1)\nctx.save_for_backward(p, t)\nreturn -p[torch.arange(len(t)), t].log().mean()",
        "p, t = ctx.saved_tensors\nrows = torch.arange(len(t))\ndz = p.clone()\ndz[rows, t] -= 1\n"
        "return g * dz / len(t), None",
        (
            ("dz[rows, t] -= 1\n", "", ONE_HOT),
            ("dz[rows, t] -= 1\n", "dz[rows, t] += 1\n", r"(operator|sign|.*one-hot)"),
            (" / len(t)", "", MEAN),
            ("g * dz", "dz", UPSTREAM),
            (
                "p.clone()",
                "torch.zeros_like(p)",
                r"(missing term|wrong function|wrong operand|extra function: .*zeros_like)",
            ),
        ),
    ),
    Backward(
        "cross-entropy by one-hot",
        "z=n,c t=n:<c w=n:w",
        "p = z.softmax(1)\nctx.save_for_backward(p, t, w)\nreturn -(w * p[torch.arange(len(t)), t].log()).sum()",
        "p, t, w = ctx.saved_tensors\nhot = F.one_hot(t, p.shape[1])\nerror = p - hot\n"
        "return g * w[:, None] * error, None, None",
        (
            ("p - hot", "p", ONE_HOT),
            ("g * w[:, None] * error", "g * error", factor("`w`")),
            ("p - hot", "hot - p", SIGN),
            (
                "F.one_hot(t, p.shape[1])",
                "F.one_hot(t.roll(1), p.shape[1])",
                r"(shifted|extra function|wrong operand): ",
            ),
        ),
    ),
    Backward(
        "log-softmax",
        "x=n,c",
        "y = x.log_softmax(1)\nctx.save_for_backward(y)\nreturn y",
        "y, = ctx.saved_tensors\np = y.exp()\ntotal = g.sum(1, keepdim=True)\nreturn g - p * total",
        (
            ("y.exp()", "y", r"(missing function|wrong function): .*exp"),
            ("g.sum(1, keepdim=True)", "g.sum(0, keepdim=True)", AXIS),
            ("g - p * total", "p * total - g", SIGN),
            ("g - p * total", "g - p * g", r"(reduction|missing term): "),
            ("g.sum(1", "g.mean(1", r"(1/N|reduction): "),
        ),
    ),
    Backward(
        "softmax",
        "x=n,c",
        "p = x.softmax(-1)\nctx.save_for_backward(x, p)\nreturn p",
        "x, p = ctx.saved_tensors\ninner = (g * p).sum(-1, keepdim=True)\nreturn p * (g - inner)",
        (
            ("(g * p).sum(-1, keepdim=True)", "(g * p).sum(0, keepdim=True)", AXIS),
            ("p * (g - inner)", "g - inner", factor("output")),
            ("(g * p).sum", "g.sum", factor("output")),
            ("p * (g - inner)", "p * (1 - inner)", r"(wrong operand|wrong number): .*upstream"),
            ("(g * p)", "(g * x)", rf"{OPERAND}.*output"),
            ("p * (g - inner)", "g * p * (1 - p)", r"missing term: .*diagonal"),
        ),
    ),
    Backward(
        "log-sum-exp",
        "x=n,c",
        "y = x.logsumexp(1)\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nweights = (x - y[:, None]).exp()\nreturn g[:, None] * weights",
        (
            ("g[:, None] * weights", "weights", UPSTREAM),
            ("(x - y[:, None]).exp()", "x.exp()", r"(missing term|extra term|missing factor|wrong operand): .*output"),
            ("g[:, None] * weights", "g[:, None] + weights", OPERATOR),
        ),
    ),
    Backward(
        "Kullback-Leibler divergence",
        "q=n,c:p p=n,c:p",
        "ctx.save_for_backward(q, p)\nreturn (p * (p.log() - q.log())).sum(1)",
        "q, p = ctx.saved_tensors\ndq = -p / q\ndp = p.log() - q.log() + 1\nu = g[:, None]\nreturn u * dq, u * dp",
        (
            ("p.log() - q.log() + 1", "p.log() - q.log()", TERM),
            ("-p / q", "-q / p", r"(swapped|wrong operand|operator): "),
            ("-p / q", "-1 / q", r"(missing factor|wrong number|wrong operand): .*`p`"),
        ),
    ),
    Backward(
        "masked mean",
        "x=n,d mask=n,d:01",
        "count = mask.sum(1)\nctx.save_for_backward(mask, count)\nreturn (x * mask).sum(1) / count",
        "mask, count = ctx.saved_tensors\nshare = (g / count)[:, None]\nreturn share * mask, None",
        (
            ("share * mask", "share.expand_as(mask).clone()", rf"({factor('`mask`')}|{REGION}.*`mask` is 0)"),
            ("g / count", "g / mask.shape[1]", r"(missing factor|wrong number|wrong operand): "),
            ("g / count", "g", factor("count")),
        ),
    ),
    Backward(
        "label smoothing",
        "z=n,c t=n:<c smooth=0.3",
        "y = z.log_softmax(1)\nhot = F.one_hot(t, z.shape[1]).to(z)\nq = (1 - smooth) * hot + smooth / z.shape[1]\n"
        "ctx.save_for_backward(y, q)\nreturn -(q * y).sum(1)",
        "y, q = ctx.saved_tensors\nreturn g[:, None] * (y.exp() - q), None, None",
        (
            ("y.exp() - q", "y.exp()", TERM),
            ("y.exp() - q", "y - q", r"missing function: .*exp"),
        ),
    ),
)
