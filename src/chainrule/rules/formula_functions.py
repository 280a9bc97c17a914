"""The functions that formulas are made of, each with its LaTeX, its code, and its slope."""

from __future__ import annotations

import math

import torch

from chainrule.rules.expression import CONJUGATE, POWER, Named, symbol

PI, UNIT = symbol(r"\pi", math.pi), symbol(r"\mathrm{i}", 1j)
conjugate = CONJUGATE

exp: Named = Named("e^{@}", torch.exp, (lambda u: exp(u),), POWER)
exp2: Named = Named("2^{@}", torch.exp2, (lambda u: exp2(u) * ln(2),), POWER)
ln: Named = Named(r"\ln @", torch.log, (lambda u: 1 / u,))
ln1p = Named(r"\ln\left(1 + @\right)", torch.log1p, (lambda u: 1 / (1 + u),))
log2 = Named(r"\log_2 @", torch.log2, (lambda u: 1 / (u * ln(2)),))
log10 = Named(r"\log_{10} @", torch.log10, (lambda u: 1 / (u * ln(10)),))
sqrt: Named = Named(r"\sqrt{@}", torch.sqrt, (lambda u: 1 / (2 * sqrt(u)),))
sin: Named = Named(r"\sin @", torch.sin, (lambda u: cos(u),))
cos: Named = Named(r"\cos @", torch.cos, (lambda u: -sin(u),))
tan: Named = Named(r"\tan @", torch.tan, (lambda u: 1 + tan(u) ** 2,))
sinh: Named = Named(r"\sinh @", torch.sinh, (lambda u: cosh(u),))
cosh: Named = Named(r"\cosh @", torch.cosh, (lambda u: sinh(u),))
tanh: Named = Named(r"\tanh @", torch.tanh, (lambda u: 1 - tanh(u) ** 2,))
sigma: Named = Named(r"\sigma(@)", torch.sigmoid, (lambda u: sigma(u) * (1 - sigma(u)),))
softplus = Named(r"\ln\left(1 + e^{@}\right)", torch.nn.functional.softplus, (sigma,))
phi: Named = Named(r"\varphi(@)", lambda z: (-z * z / 2).exp() / math.sqrt(2 * math.pi), (lambda u: -u * phi(u),))
Phi = Named(r"\Phi(@)", lambda z: 0.5 * (1 + torch.erf(z / math.sqrt(2))), (phi,))
sign = Named(r"\operatorname{sign}(@)", torch.sgn, (lambda u: 0,))
size = Named(r"\left|@\right|", torch.abs, (sign,))
highest, lowest = Named(r"\max(@1, @2)", torch.maximum), Named(r"\min(@1, @2)", torch.minimum)
