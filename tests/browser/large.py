"""A document of the size of a GPT-2-small step, made without running one: 12 blocks, some 600 rows, 1800 sections."""

from chainrule.document import Code, Document, Equation, Paragraph, Row, Section, Tensor, Verdict

OPERATIONS = (
    "layer_norm", "linear", "split", "view", "transpose", "view", "transpose", "view", "transpose", "transpose",
    "matmul", "div", "softmax", "matmul", "transpose", "contiguous", "view", "linear", "add", "layer_norm", "linear",
    "gelu", "linear", "add",
)  # fmt: skip
MODULES = {0: "ln_1", 1: "attn.c_attn", 17: "attn.c_proj", 19: "ln_2", 20: "mlp.c_fc", 22: "mlp.c_proj"}


def large(blocks: int = 12) -> Document:
    """A step through `blocks` transformer blocks."""
    rows = [_leaf(0, "data", "tokens", "")]
    forward: list[Section] = []
    backward: list[Section] = []
    residual = 0
    for block in range(blocks):
        for place, operation in enumerate(OPERATIONS):
            path = f"h.{block}" + (f".{MODULES[place]}" if place in MODULES else ".attn" if 1 < place < 17 else "")
            inputs = [len(rows) - 1]
            if place in MODULES:
                for kind in ("weight", "bias"):
                    rows.append(_leaf(len(rows), "parameter", f"{path}.{kind}", path, (f"backward-{len(rows)}",)))
                    inputs.append(len(rows) - 1)
                    backward.append(_back(rows[-1]))
            if operation == "add":
                inputs.append(residual)
            row = _operation(len(rows), operation, path, tuple(dict.fromkeys(inputs)))
            residual = row.index if operation == "add" else residual
            rows.append(row)
            forward.append(_forward(row))
            backward.append(_back(row))
    updates = tuple(_update(row) for row in rows if row.kind == "parameter")
    return Document(
        ("One training step, worked out",),
        (Paragraph(("J = 10.9",)),),
        (
            Section(("Forward",), "forward", "forward", (), tuple(forward)),
            Section(("Backward",), "backward", "backward", (), tuple(reversed(backward))),
            Section(("Update: AdamW",), "update-1", "update", (), updates),
        ),
        tuple(rows),
    )


def _tensor(symbol: str, role: str, index: int, label: str = "") -> Tensor:
    size = 0.37 * 1.0173 ** (index % 91)
    statistics = (
        ("elements", 98304), ("norm", 313.5 * size), ("mean", -0.00123 * size), ("std", size), ("min", -4.1 * size),
        ("max", 4.3 * size), ("zeros", 0.0), ("not finite", 0),
    )  # fmt: skip
    return Tensor(symbol, (1, 128, 768), "float32", role, None, statistics, label=label)  # type: ignore[arg-type]


def _symbols(name: str) -> tuple[str, str]:
    symbol = rf"\text{{{name.replace('_', chr(92) + '_')}}}"
    return symbol, rf"\frac{{\partial J}}{{\partial {symbol}}}"


def _leaf(index: int, kind: str, name: str, module: str, backward: tuple[str, ...] = ()) -> Row:
    symbol, gradient = _symbols(name)
    told = _tensor(gradient, "gradient", index) if kind == "parameter" else None
    value = _tensor(symbol, "parameter" if kind == "parameter" else "value", index)
    return Row(index, kind, name, symbol, gradient, "", "", "", module, (), value, told, None, backward)  # type: ignore[arg-type]


def _operation(index: int, operation: str, module: str, inputs: tuple[int, ...]) -> Row:
    name = f"{module}.{operation}@{index}"
    symbol, gradient = _symbols(name)
    return Row(
        index, "operation", name, symbol, gradient, operation, f"self.{operation}(x)", "model.py:41", module, inputs,
        _tensor(symbol, "value", index), _tensor(gradient, "gradient", index), f"forward-{index}",
        (f"backward-{index}",), "agrees", 0.001,
    )  # fmt: skip


def _forward(row: Row) -> Section:
    title = (f"Forward {row.index}: {row.name} = ", Code(row.expression), f" ({row.place})")
    equation = Equation(rf"{{{row.symbol}}} = \operatorname{{{row.operation.replace('_', '')}}}({{x}})")
    return Section(title, f"forward-{row.index}", "forward", (equation, row.value))


def _back(row: Row) -> Section:
    local = rf"\frac{{\partial {row.symbol}}}{{\partial x}}"
    blocks = (
        _tensor(row.gradient_symbol, "gradient", row.index, "upstream"),
        Equation(rf"{row.gradient_symbol} = {row.gradient_symbol} \cdot {local}", "chain rule"),
        Equation(rf"{local} = 1", "local derivative"),
        Paragraph((f"The Jacobian has {98304**2:,} entries: too many to write out.",)),
        Equation(rf"{row.gradient_symbol} = {row.gradient_symbol} \odot x^{{T}}", "what PyTorch runs"),
        _tensor(row.gradient_symbol, "gradient", row.index, "result"),
        Verdict("agrees", ("our rules against ", Code(".grad")), 1.5e-9, 3e-8),
    )
    return Section((f"dJ/d{row.name}",), f"backward-{row.index}", "backward", blocks)


def _update(row: Row) -> Section:
    terms = [
        each
        for letter in "mvabcd"
        for each in (
            Equation(rf"{letter}_t = \beta \, {letter}_{{t-1}} + {row.gradient_symbol}"),
            _tensor(f"{letter}_t", "parameter", row.index),
        )
    ]
    return Section((row.name,), f"update-1-{row.index}", "update", tuple(terms))
