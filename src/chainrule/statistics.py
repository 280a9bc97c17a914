"""What is said of a tensor without its numbers: size, norm, mean, spread, extremes, zeros, and where its sizes lie.

Worked out where the tensor lives, in few passes over its memory. `measure` leaves the figures in a small tensor beside
it, so that a thousand tensors of a GPU are asked for without waiting for one; `Statistics.of` reads one at once.
"""

from __future__ import annotations

from dataclasses import dataclass

EXPONENTS = range(-32, 32, 4)
"""The histogram's bins: bin `i` counts the sizes from 2^EXPONENTS[i] up to the next; the outermost take the rest."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of one tensor. Of a complex tensor those of its absolute values; of whole numbers and booleans as floats.

    All but `elements`, `zeros` and `not_finite` are of the finite elements alone, and 0 where there are none:

        norm = sqrt(sum x^2)     mean = sum x / n     std = sqrt(sum (x - mean)^2 / n)

    `magnitudes` counts the finite elements that are not 0 by the power of two of their size (`EXPONENTS`); empty where
    it was not asked for.
    """

    elements: int
    norm: float
    mean: float
    std: float
    low: float
    high: float
    zeros: int
    not_finite: int
    magnitudes: tuple[int, ...] = ()
