"""Backward functions as users write them, each with wrong versions: a text to replace, and what the mistake is called.

`inputs` names each input with its shape in letters (SIZES) and what it holds: `+` positive numbers, `p` probabilities,
and without a gradient `w` positive weights, `01` a mask, `<d` indices below d; or a plain number. An expected name is a regular expression for "kind: text".
"""
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass

SIZES = (
    {"n": 4, "d": 3, "m": 5, "b": 2, "c": 6, "h": 2, "k": 3, "s": 7, "v": 8, "e": 4},
    {"n": 16, "d": 9, "m": 10, "b": 3, "c": 6, "h": 4, "k": 3, "s": 14, "v": 20, "e": 8},
)


@dataclass(frozen=True)
class Backward:
    """A forward, its right backward, and wrong versions of it: (text, its replacement, a pattern of its name)."""

    name: str
    inputs: str
    forward: str
    backward: str
    wrong: tuple[tuple[str, str, str], ...]


UPSTREAM = r"missing factor: .*upstream"
OPERATOR = r"operator: "
FACTOR = r"factor: "
SIGN = r"sign: "
MEAN = r"1/N: "
AXIS = r"reduction: .*ax(is|es) "
NO_SUM = r"reduction: .*sum is missing"
TERM = r"missing term: "
EXTRA = r"extra term: "
DERIVATIVE = r"missing factor: .*(derivative|multiplied by)"
SHIFTED = r"shifted: "
EPSILON = r"epsilon: "
TRANSPOSED = r"transpose: "
SWAPPED = r"swapped: "
OPERAND = r"wrong operand: "
REGION = r"region: "
ONE_HOT = r"(missing|extra) term: .*one-hot"


def factor(name: str) -> str:
    """A factor forgotten, by name."""
    return rf"missing factor: .*{name}"


ELEMENTWISE = (
    Backward(
        "sin",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x.sin()",
        "x, = ctx.saved_tensors\nreturn g * x.cos()",
        (
            ("g * x.cos()", "x.cos()", UPSTREAM),
            ("g * x.cos()", "g + x.cos()", OPERATOR),
            ("x.cos()", "x.sin()", r"wrong function: .*cos"),
            ("g * x.cos()", "g", DERIVATIVE),
        ),
    ),
    Backward(
        "exp",
        "x=n,d",
        "y = x.exp()\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nreturn g * y",
        (("g * y", "g * x", rf"{OPERAND}.*output"), ("g * y", "y", UPSTREAM), ("g * y", "y / g", OPERATOR)),
    ),
    Backward(
        "log",
        "x=n,d:+",
        "ctx.save_for_backward(x)\nreturn x.log()",
        "x, = ctx.saved_tensors\nreturn g / x",
        (("g / x", "g * x", OPERATOR), ("g / x", "1 / x", UPSTREAM), ("g / x", "x / g", r"(swapped|operator): ")),
    ),
    Backward(
        "square root with eps",
        "x=n,d:+ eps=0.3",
        "y = (x + eps).sqrt()\nctx.save_for_backward(x)\nctx.eps = eps\nreturn y",
        "x, = ctx.saved_tensors\nroot = (x + ctx.eps).sqrt()\nreturn g / (2 * root), None",
        (
            ("(x + ctx.eps).sqrt()", "x.sqrt()", EPSILON),
            ("(x + ctx.eps).sqrt()", "x.sqrt() + ctx.eps", EPSILON),
            ("2 * root", "root", FACTOR),
        ),
    ),
    Backward(
        "square",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x * x",
        "x, = ctx.saved_tensors\ndx = 2 * g * x\nreturn dx",
        (("2 * g * x", "g * x", FACTOR), ("2 * g * x", "2 * g", factor("`x`")), ("2 * g * x", "2 + g * x", OPERATOR)),
    ),
    Backward(
        "reciprocal",
        "x=n,d:+",
        "y = 1 / x\nctx.save_for_backward(y)\nreturn y",
        "y, = ctx.saved_tensors\nreturn -g * y * y",
        (("-g", "g", SIGN), ("-g * y * y", "-g * y", factor("output")), ("-g * y * y", "-g * y - y", OPERATOR)),
    ),
    Backward(
        "tanh",
        "x=n,d",
        "y = x.tanh()\nctx.save_for_backward(x, y)\nreturn y",
        "x, y = ctx.saved_tensors\nlocal = 1 - y**2\nreturn g * local",
        (
            ("y**2", "x**2", rf"{OPERAND}.*output"),
            ("1 - y**2", "1 + y**2", r"(operator|sign): "),
            ("y**2", "y", r"(missing factor: .*output|wrong number: .*2|missing function: .*square)"),
            ("1 - y**2", "y**2", r"(missing term|wrong number|operator): .*1"),
        ),
    ),
    Backward(
        "sigmoid",
        "x=n,d",
        "y = x.sigmoid()\nctx.save_for_backward(y)\nreturn y",
        "y, = ctx.saved_tensors\nlocal = y * (1 - y)\nreturn local * g",
        (
            ("local * g", "local", UPSTREAM),
            ("y * (1 - y)", "(1 - y)", factor("output")),
            ("y * (1 - y)", "y + (1 - y)", OPERATOR),
            ("(1 - y)", "(y - 1)", SIGN),
        ),
    ),
    Backward(
        "relu",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x.relu()",
        "x, = ctx.saved_tensors\nmask = x > 0\nreturn g * mask",
        (
            ("x > 0", "x < 0", r"(operator|region): .*"),
            ("g * mask", "g", rf"({REGION}.*`x`|{factor('.*(derivative|relu)')})"),
            ("g * mask", "mask.to(g.dtype)", UPSTREAM),
        ),
    ),
    Backward(
        "leaky relu",
        "x=n,d slope=0.2",
        "ctx.save_for_backward(x)\nctx.slope = slope\nreturn torch.where(x > 0, x, slope * x)",
        "x, = ctx.saved_tensors\ndx = g.clone()\ndx[x < 0] *= ctx.slope\nreturn dx, None",
        (
            ("dx[x < 0] *= ctx.slope", "dx[x < 0] = 0", rf"({REGION}|{TERM}).*wrong where `x` is negative"),
            ("dx[x < 0] *= ctx.slope", "dx[x < 0] = ctx.slope", rf"({UPSTREAM}|{REGION}.*upstream)"),
            ("dx[x < 0]", "dx[x > 0]", r"(operator|region): "),
        ),
    ),
    Backward(
        "clamp",
        "x=n,d low=-0.6 high=0.7",
        "ctx.save_for_backward(x)\nctx.low, ctx.high = low, high\nreturn x.clamp(low, high)",
        "x, = ctx.saved_tensors\ninside = (x > ctx.low) & (x < ctx.high)\nreturn g * inside, None, None",
        (
            ("(x > ctx.low) & (x < ctx.high)", "x > ctx.low", rf"({REGION}.*`x`|{DERIVATIVE}.*clamp)"),
            ("(x < ctx.high)", "(x < 1.2)", r"(wrong number|region): "),
            ("&", "|", r"(operator|region): "),
        ),
    ),
    Backward(
        "absolute value",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x.abs()",
        "x, = ctx.saved_tensors\nreturn g * x.sign()",
        (
            ("g * x.sign()", "g", rf"({REGION}.*negative|{DERIVATIVE})"),
            ("x.sign()", "x", r"wrong function|missing function|wrong operand"),
        ),
    ),
    Backward(
        "gelu, tanh",
        "x=n,d",
        "inner = 0.8 * (x + 0.045 * x**3)\nt = inner.tanh()\nctx.save_for_backward(x, t)\nreturn 0.5 * x * (1 + t)",
        "x, t = ctx.saved_tensors\nslope = 0.8 * (1 + 3 * 0.045 * x**2)\nleft = 0.5 * (1 + t)\n"
        "right = 0.5 * x * (1 - t**2) * slope\nreturn g * (left + right)",
        (
            ("left + right", "left", TERM),
            ("3 * 0.045", "0.045", r"(factor|missing factor|wrong number): .*3"),
            (" * slope", "", factor("")),
            ("(1 - t**2)", "(1 + t**2)", r"(operator|sign): "),
            ("g * (left + right)", "g * left * right", OPERATOR),
        ),
    ),
    Backward(
        "silu",
        "x=n,d",
        "s = x.sigmoid()\nctx.save_for_backward(x, s)\nreturn x * s",
        "x, s = ctx.saved_tensors\nds = s * (1 - s)\ndx = s + x * ds\nreturn g * dx",
        (
            ("s + x * ds", "s + ds", factor("`x`")),
            ("s + x * ds", "x * ds", TERM),
            ("s + x * ds", "s * x * ds", OPERATOR),
            ("(1 - s)", "(1 - x)", OPERAND),
        ),
    ),
    Backward(
        "softplus",
        "x=n,d beta=1.7",
        "ctx.save_for_backward(x)\nctx.beta = beta\nreturn (1 + (beta * x).exp()).log() / beta",
        "x, = ctx.saved_tensors\ns = (ctx.beta * x).sigmoid()\nreturn g * s, None",
        (
            ("ctx.beta * x", "x", r"(missing factor|factor): .*beta"),
            ("g * s", "g * s * ctx.beta", r"(extra factor|factor): .*beta"),
            (".sigmoid()", ".tanh()", r"wrong function: .*sigmoid"),
        ),
    ),
    Backward(
        "elu",
        "x=n,d alpha=1.4",
        "y = torch.where(x > 0, x, alpha * (x.exp() - 1))\nctx.save_for_backward(x, y)\nctx.alpha = alpha\nreturn y",
        "x, y = ctx.saved_tensors\nreturn g * torch.where(x > 0, torch.ones_like(x), y + ctx.alpha), None",
        (
            ("y + ctx.alpha", "y", r"(missing term|region|operator|epsilon|wrong number): "),
            ("torch.ones_like(x)", "torch.zeros_like(x)", r"(region: .*positive|operator: .*ones_like)"),
            (
                "torch.ones_like(x), y + ctx.alpha",
                "y + ctx.alpha, torch.ones_like(x)",
                r"(swapped|region|operator: .*`<`)",
            ),
        ),
    ),
    Backward(
        "prelu",
        "x=n,d a=d",
        "ctx.save_for_backward(x, a)\nreturn torch.where(x > 0, x, a * x)",
        "x, a = ctx.saved_tensors\noff = x <= 0\ndx = torch.where(off, a * g, g)\nda = (g * x * off).sum(0)\nreturn dx, da",
        (
            (" * off)", ")", r"(missing factor|region): "),
            ("a * g", "a", rf"({UPSTREAM}|{REGION}.*upstream)"),
            ("(g * x * off).sum(0)", "(g * x * off).mean(0)", MEAN),
        ),
    ),
    Backward(
        "power",
        "x=n,d:+ p=3",
        "ctx.save_for_backward(x)\nctx.p = p\nreturn x**p",
        "x, = ctx.saved_tensors\nreturn ctx.p * x ** (ctx.p - 1) * g, None",
        (
            ("ctx.p * x **", "x **", rf"{FACTOR}.*`p` = 3"),
            ("(ctx.p - 1)", "ctx.p", r"(wrong number|extra factor): "),
            ("* g, None", "+ g, None", OPERATOR),
        ),
    ),
    Backward(
        "division",
        "x=n,d y=n,d:+",
        "ctx.save_for_backward(x, y)\nreturn x / y",
        "x, y = ctx.saved_tensors\ndx = g / y\ndy = -g * x / y**2\nreturn dx, dy",
        (
            ("-g * x / y**2", "-g * x / y", r"(missing factor|wrong number|wrong operand: .*square. of `y`)"),
            ("-g * x", "g * x", SIGN),
            ("dx, dy", "dy, dx", SWAPPED),
        ),
    ),
    Backward(
        "product",
        "x=n,d y=n,d",
        "ctx.save_for_backward(x, y)\nreturn x * y",
        "x, y = ctx.saved_tensors\nreturn g * y, g * x",
        (
            ("g * y, g * x", "g * x, g * y", SWAPPED),
            ("g * y, ", "g + y, ", OPERATOR),
            ("g * y, ", "g, ", factor("`y`")),
            ("g * y, ", "y, ", UPSTREAM),
        ),
    ),
    Backward(
        "product with a row",
        "x=n,d w=d",
        "ctx.save_for_backward(x, w)\nreturn x * w",
        "x, w = ctx.saved_tensors\ndx = g * w\ndw = (g * x).sum(0)\nreturn dx, dw",
        (
            ("(g * x).sum(0)", "g.sum(0)", factor("`x`")),
            ("(g * x).sum(0)", "(g * x).mean(0)", MEAN),
            ("(g * x).sum(0)", "(g * x)[0]", r"reduction: "),
            (
                "(g * x).sum(0)",
                "g.sum(0) * x.sum(0)",
                r"wrong expression: .*`x` times the upstream gradient, summed over axis 0",
            ),
            ("g * w", "g", factor("`w`")),
        ),
    ),
    Backward(
        "dropout",
        "x=n,d mask=n,d:01 p=0.25",
        "ctx.save_for_backward(mask)\nctx.p = p\nreturn x * mask / (1 - p)",
        "mask, = ctx.saved_tensors\nreturn g * mask / (1 - ctx.p), None, None",
        (
            ("g * mask / (1 - ctx.p)", "g * mask", FACTOR),
            ("g * mask / (1 - ctx.p)", "g / (1 - ctx.p)", rf"({factor('`mask`')}|{REGION}.*`mask` is 0)"),
            ("g * mask / (1 - ctx.p)", "mask / (1 - ctx.p)", UPSTREAM),
            ("(1 - ctx.p)", "ctx.p", r"(factor|wrong number): "),
        ),
    ),
    Backward(
        "polynomial",
        "x=n,d",
        "ctx.save_for_backward(x)\nreturn x**3 - 2 * x**2 + x",
        "x, = ctx.saved_tensors\ncubic = 3 * x**2\nquadratic = 4 * x\nreturn g * (cubic - quadratic + 1)",
        (
            ("cubic - quadratic + 1", "cubic - quadratic", TERM),
            ("4 * x", "2 * x", r"(factor|wrong number): .*4|twice"),
            ("cubic - quadratic", "cubic + quadratic", r"(operator|sign): "),
            ("3 * x**2", "3 * x", r"(missing factor|wrong number): "),
        ),
    ),
)
