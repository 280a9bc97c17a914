import html
import re
import unicodedata

import pytest

from chainrule.document import Document
from chainrule.views import written
from chainrule.views.formula import latex

WRITTEN = {
    # layers, scripts
    r"Z^{[1]} = X\,{W^{[1]}}^{T} + b^{[1]}": "Z1 = X W1ᵀ + b1",
    r"{W^{[2]}}^{\top}": "W2ᵀ",
    r"x_{0,1} + W^{[1]}_{ij} + b^{[1]}_0 + b_{0}^{[1]}": "x[0,1] + W1ᵢⱼ + b1[0] + b1[0]",
    r"\text{linear1.weight}_{1,0}": "linear1.weight[1,0]",
    r"e^{[0]} + e^{[0, 1]} + 2^{[3]} + x^{[1, 2]}": "e^([0]) + e^([0, 1]) + 2^([3]) + x^([1, 2])",
    r"e^{-x} + e^{-x^2} + Z^{a/b} + x_{b}": "e⁻ˣ + e^(-x²) + Z^(a/b) + x[b]",
    r"x^{(i)} \in \{0, 1\}": "x⁽ⁱ⁾ ∈ {0, 1}",
    r"b_{i,0,\lfloor j/2 \rfloor,j \bmod 2} + c \bmod 3": "b[i,0,⌊j/2⌋,j mod 2] + c mod 3",
    # numbers
    r"0.9 \, \begin{pmatrix} 0.1 & -2.5e-05 \\ 3 & 1e+07 \end{pmatrix}^{T}": "0.9 [[0.1, -2.5e-05], [3, 1e+07]]ᵀ",
    r"\frac{1.5e-05}{2} - 3e-09 \odot \begin{pmatrix} -1 \end{pmatrix}": "1.5e-05/2 - 3e-09 ⊙ [-1]",
    # derivatives and other fractions
    r"\frac{\partial J}{\partial W^{[1]}} = \left(\frac{\partial J}{\partial Z^{[1]}}\right)^{T} X": (
        "dJ/dW1 = (dJ/dZ1)ᵀ X"
    ),
    r"\frac{\partial J}{\partial Z}\frac{\partial Z}{\partial W}": "dJ/dZ · dZ/dW",
    r"{\frac{\partial J}{\partial Z^{[2]}}}^{T} A^{[1]}": "(dJ/dZ2)ᵀ A1",
    r"\frac{\partial \hat{y}}{\partial x_{0,1}}": "dŷ/dx[0,1]",
    r"\left.\frac{dy}{dx}\right|_{x=0}": "dy/dx|ₓ₌₀",
    r"\frac{a+b}{2m} - \frac{x}{y z} + \frac{1}{\sqrt{x}}": "(a + b)/(2m) - x/(y z) + 1/√x",
    r"\frac12 x": "1/2 · x",
    r"\frac{1}{m}(A - Y)": "1/m · (A - Y)",
    r"-\left(\frac{Y}{A} - \frac{1-Y}{1-A}\right)": "-(Y/A - (1 - Y)/(1 - A))",
    r"\tfrac{1}{1 + e^{-z}}": "1/(1 + e⁻ᶻ)",
    r"\log \frac{p}{q}": "log(p/q)",
    # sums, functions, accents, roots
    r"-\frac{1}{m}\sum_{i=1}^{m} \left[ y_i \log a_i + (1 - y_i)\log(1-a_i) \right]": (
        "-1/m Σᵢ₌₁ᵐ [y[i] log a[i] + (1 - y[i]) log(1 - a[i])]"
    ),
    r"\operatorname{ReLU}(x) \odot \mathrm{vec}(X)": "ReLU(x) ⊙ vec(X)",
    r"\max(0, x), \operatorname*{argmax}_i x_i": "max(0, x), argmaxᵢ x[i]",
    r"\sigma'(z) = \sigma(z)(1-\sigma(z))": "σ'(z) = σ(z)(1 - σ(z))",
    r"\hat{m}_t / (\sqrt{\hat v_t} + \epsilon)": "m̂ₜ/(√v̂ₜ + ε)",
    r"\bar{x} = \bar{W^{[1]}} = \overline{\text{cost}}": "x\u0304 = W\u03041 = bar(cost)",
    r"\theta_t = \theta_{t-1} - \frac{\eta}{\sqrt{\hat{v}_t} + \epsilon}\,\hat{m}_t": (
        "θₜ = θₜ₋₁ - η/(√v\u0302ₜ + ε) · m\u0302ₜ"
    ),
    r"\frac{m_t}{1 - \beta_1^{t}}": "mₜ/(1 - β₁ᵗ)",
    r"\lVert x - y \rVert_2 = |-x|": "‖x - y‖₂ = |-x|",
    r"10^{-3} \cdot 2\pi r, \quad a \ne -b": "10⁻³ · 2π r,   a ≠ -b",
    r"\sum \pm \frac{1}{C} + \sum_{j \neq i} \max_{k} {\frac{a}{b}}_{k}": "Σ ±1/C + Σ_(j ≠ i) maxₖ (a/b)[k]",
    r"{Z^{[1]}}_{0} + {Z^{[1]}}_{n, {Y}_n} + \rho_\infty": "Z1[0] + Z1[n,Y[n]] + ρ_∞",
    r"0.9 \, 0.5 \, x^{momentum}": "0.9 · 0.5 x^momentum",
    r"\frac{\partial J}{\partial A} \text{ at the chosen index, } 0 \text{ elsewhere}": (
        "dJ/dA at the chosen index, 0 elsewhere"
    ),
    r"\sum_i x_i \text{, NaN counting as 0}": "Σᵢ x[i], NaN counting as 0",
    r"\lnot m, \; \left\lfloor x / 2 \right\rfloor": "¬m, ⌊x/2⌋",
    # environments
    r"\begin{cases} 1 & Z > 0 \\ 0 & Z \le 0 \end{cases}": "{1 if Z > 0, 0 if Z ≤ 0}",
    r"\begin{cases} x & \text{if } x > 0 \\ 0.01 x & \text{otherwise} \end{cases}": "{x if x > 0, 0.01 x otherwise}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": "[[1, 2], [3, 4]]",
    r"\begin{aligned} J &= \frac{1}{m}\sum_i L_i \\ &= 0.1952 \end{aligned}": "J = 1/m Σᵢ L[i]\n  = 0.1952",
    # names, and what nobody knows
    r"\text{my\_name} + a^*": "my_name + a*",
    r"\foo{x} + $out": "foo x + out",
    "": "",
}


@pytest.mark.parametrize("source", WRITTEN)
def test_latex(source: str) -> None:
    assert unicodedata.normalize("NFD", latex(source)) == unicodedata.normalize("NFD", WRITTEN[source])


@pytest.mark.parametrize(
    "source", [r"\frac{a", "{{{", "x^", "_", "}", r"\begin{cases} 1", r"\right", r"\\", "{" * 5000]
)
def test_broken_latex_is_shown_and_never_raises(source: str) -> None:
    assert latex(source) or source == r"\\"


def test_every_cut_of_every_formula_is_readable() -> None:
    for source in WRITTEN:
        for length in range(len(source)):
            assert isinstance(latex(source[:length]), str)


def printable(text: str) -> str:
    """Some text as the title of a page is shown."""
    title = re.search(r"<title>(.*?)</title>", written(Document((text,), (), ()), ".html"), re.DOTALL)
    assert title is not None
    return html.unescape(title[1])


def test_control_characters_are_shown_as_their_codes() -> None:
    assert printable("\x1b[31mred\x07 \x9b \u202etxet \u2028") == r"\x1b[31mred\x07 \x9b \u202etxet \u2028"
    assert printable("F.linear(\n    x,\tW)") == "F.linear( x, W)"
    assert printable("café 変数 x̂") == "café 変数 x̂"
    for code in [*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xE0001]:
        assert printable(f"a{chr(code)}b").isprintable()
    assert latex("\\text{\x1b]0;title\x07}") == r"\x1b]0;title\x07"
    assert latex("\x1b[2J x") == r"\x1b[2J x"
