"""Every number that decides whether something is found: one table, which the user can change.

A false alarm costs more than a miss: it teaches the reader to look away. So each threshold lies well beyond what
healthy training showed in our own runs (tests/faults), and says on whose practice or paper it rests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from chainrule.errors import ThresholdError


def _limit(default: float, unit: str, meaning: str, source: str = "") -> Any:
    return field(default=default, metadata={"unit": unit, "meaning": meaning, "source": source})


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as unhealthy; give those that you disagree with: `Thresholds(update_ratio_large=0.3)`.

    Every field stands in docs/findings.md with its unit, its meaning and its source. Raises ThresholdError for a value
    that is no finite number of 0 or more.
    """

    # units
    units_off: float = _limit(
        0.3, "share of a layer's units", "units off for every sample of one step, above which it is a warning",
        "with He's initialisation half of all pre-activations are below 0, so in a small batch some units are off",
    )  # fmt: skip
    units_dead: float = _limit(
        0.5, "share of a layer's units", "units off at each of the last examined steps, above which it is a warning",
        "Lu et al., Dying ReLU and initialization, 2019",
    )  # fmt: skip
    flat: float = _limit(
        0.04, "mean slope, as a share of the largest that the function has",
        "below it a sigmoid, a tanh or a softmax is saturated",
        "Glorot and Bengio, 2010: units of tanh and sigmoid that sit at their ends pass nothing back",
    )  # fmt: skip
    same: float = _limit(
        1e-5, "relative difference", "rows of a weight, and of its gradient, that count as equal",
        "rounding of float32 sums; Goodfellow et al., Deep Learning, 8.4: initial values must break symmetry",
    )  # fmt: skip

    # gradients
    depth_ratio: float = _limit(
        1e-4, "ratio of gradient norms", "between the layers of the first third and of the last third: vanishing",
        "He et al., 2015, and Glorot and Bengio, 2010: a healthy initialisation keeps it near 1",
    )  # fmt: skip
    depth_growth: float = _limit(
        1e4, "ratio of gradient norms", "between the layers of the first third and of the last third: exploding",
        "the same; Pascanu et al., 2013, for recurrent networks",
    )  # fmt: skip
    accumulated: float = _limit(
        1e-3, "relative difference", "between what backward sent and what lies in `.grad`", "rounding of bfloat16"
    )
    tiny: float = _limit(
        0.5, "share of the gradient's elements that are not 0", "below 2^-16, near the end of float16's range",
        "Micikevicius et al., Mixed precision training, 2018: subnormal from 2^-14 on, 0 below 2^-24",
    )  # fmt: skip
    noise: float = _limit(
        0.1, "mean cosine between the gradients of micro-batches", "below it they share next to no direction",
        "McCandlish et al., An empirical model of large-batch training, 2018",
    )  # fmt: skip

    # the optimizer
    update_ratio_large: float = _limit(
        0.1, "norm of the update / norm of the weight", "median over the window: larger is too large",
        "Karpathy, CS231n: healthy is about 1e-3; this is a hundred times as much",
    )  # fmt: skip
    update_ratio_small: float = _limit(
        1e-6, "norm of the update / norm of the weight", "the largest of the whole run: smaller is too small",
        "the same rule of thumb; a thousandth of it, so that fine-tuning and warm-up pass",
    )  # fmt: skip
    update_ratio_lively: float = _limit(
        0.03, "norm of the update / norm of the weight",
        "above it the update is large enough to blame the learning rate for a loss that rises or swings",
        "the same rule of thumb, thirty times",
    )  # fmt: skip
    stuck: float = _limit(
        1e-2, "root mean square of the update / learning rate", "below it an adaptive optimizer does not move",
        "Kingma and Ba, Adam, 2015: the step is about the learning rate where gradients keep their size",
    )  # fmt: skip
    clipped_share: float = _limit(
        0.95, "share of the watched steps", "at which the gradient was clipped", "Pascanu et al., 2013: clip the rare"
    )
    clipped_factor: float = _limit(
        10.0, "norm before / norm after", "median, above which always clipping is a warning",
        "the learning rate that counts is smaller by this factor",
    )  # fmt: skip

    # the loss
    loss_rise: float = _limit(
        1.5, "loss / loss at the start", "median over the last half of the run: diverging", "our runs"
    )
    loss_swing: float = _limit(
        0.6, "negative correlation of the loss with itself one step later", "above it the loss swings",
        "0 for noise, 1 for a loss that jumps to and fro over a minimum",
    )  # fmt: skip
    spike_factor: float = _limit(2.0, "loss / median of the window before", "a spike", "our runs")
    spike_sigmas: float = _limit(
        10.0, "robust standard deviations of the window before", "that the loss must lie above its median, too",
        "from the median size of the differences between steps, in which a trend does not count",
    )  # fmt: skip
    spike_height: float = _limit(
        0.5, "share of the loss at the start", "that it must lie above the median, too: hard samples late in training",
        "our runs",
    )  # fmt: skip

    # the data
    input_size: float = _limit(
        10.0, "absolute mean, or standard deviation", "of what enters the first layer",
        "LeCun et al., Efficient backprop, 1998: mean 0, deviation 1",
    )  # fmt: skip
    input_spread: float = _limit(
        1e3, "largest / smallest standard deviation of a feature", "of what enters the first layer", "the same"
    )
    conflicts: float = _limit(
        0.05, "share of the samples", "whose very input also occurs with another label",
        "Zhang et al., Understanding deep learning requires rethinking generalization, 2017: any other labels can be "
        "fit",
    )  # fmt: skip
    plateau: float = _limit(
        0.01, "relative change of the loss", "over the last quarter of a run on one batch", "our runs"
    )

    # time
    window: float = _limit(20, "watched steps", "that a moving median looks back over")
    enough: float = _limit(10, "watched steps", "before anything is said about a course over time")

    def __post_init__(self) -> None:
        for each in fields(self):
            given = getattr(self, each.name)
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
                raise ThresholdError(
                    f"Thresholds({each.name}={given!r}): this is {each.metadata['unit']}, a finite number of 0 or "
                    f"more. Its default is {each.default:g}."
                )


def check_thresholds(given: Thresholds | None) -> Thresholds:
    """The thresholds to go by, the usual ones for None. Raises ThresholdError for anything else."""
    if given is not None and not isinstance(given, Thresholds):
        raise ThresholdError(
            f"thresholds={given!r}: give a chainrule.Thresholds, as in chainrule.Thresholds(update_ratio_large=0.3)."
        )
    return given or Thresholds()
