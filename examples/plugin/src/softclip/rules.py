"""What the operators mean, so that chainrule explains and proves them: the formula, from which the rest follows."""

import softclip
from chainrule.rules import elementwise
from chainrule.rules.expression import argument
from chainrule.rules.formula_functions import tanh

X, LIMIT = argument("x"), argument("limit")

elementwise(
    "softclip::softclip",
    equation=LIMIT * tanh(X / LIMIT),
    derivative=["x"],
    source="the chain rule with tanh' = 1 - tanh²",
)
elementwise(softclip.SoftClip, equation=tanh(X), derivative=["x"], source="tanh' = 1 - tanh²")
