"""The bins of the small histogram that statistics have."""

EXPONENTS = range(-32, 32, 4)
"""Bin `i` counts the sizes from 2^EXPONENTS[i] up to the next; the outermost take the rest."""

SAMPLE = 512  # numbers, spread over the tensor, that the histogram is made of
