"""The table of all thresholds of the checks. The user can change each of them.

A false alarm costs more than a miss: it teaches the reader to look away. So each threshold lies well beyond what
healthy training showed in our own runs (tests/bed/loops), and names the practice or paper behind it.
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
    """What counts as unhealthy. Give the fields to change: `Thresholds(update_ratio_large=0.3)`.

    docs/findings.md lists every field with its unit, its meaning and its source. Raises ThresholdError for a value
    that is not a finite number of 0 or more.
    """

    # fmt: off
    # units
    units_off: float = _limit(0.3, "share of a layer's units", "more that are off in one step are a warning",
        "He's initialisation puts half of all pre-activations below 0, so in a small batch some units are off")
    units_dead: float = _limit(0.5, "share of a layer's units", "more that stay off are a warning",
        "Lu et al., Dying ReLU and initialization, 2019")
    flat: float = _limit(0.04, "mean slope, as a share of the function's largest slope", "a smaller one is saturation",
        "Glorot and Bengio, 2010: saturated units of tanh and sigmoid pass almost no gradient back")
    same: float = _limit(1e-5, "relative difference", "rows of a weight and its gradient within it are equal",
        "rounding of float32 sums; Goodfellow et al., Deep Learning, 8.4: initial values must break symmetry")
    dropped: float = _limit(0.9, "share of the elements", "a dropout of this share or more is reported",
        "Srivastava et al., Dropout, 2014, 0.5 in hidden layers; a keep_prob of 0.9 or more is the usual mistake")
    # gradients
    depth_ratio: float = _limit(2e-5, "gradient norm of the first layer / of the last", "a smaller one is vanishing",
        "He et al., 2015, and Glorot and Bengio, 2010: a healthy initialisation keeps it near 1")
    depth_growth: float = _limit(1e4, "gradient norm of the first layer / of the last", "a larger one is exploding",
        "the same; Pascanu et al., 2013, for recurrent networks")
    time_growth: float = _limit(10.0, "gradient norm of the first time steps / of the last",
        "a larger one at most steps is exploding", "our runs: at most 5; Pascanu et al., 2013")
    accumulated: float = _limit(1e-3, "relative difference", "how far `.grad` may be from what backward sent",
        "rounding of bfloat16")
    tiny: float = _limit(0.5, "share of the gradient's nonzero elements", "a larger share below 2^-16 is an underflow",
        "Micikevicius et al., Mixed precision training, 2018: float16 is subnormal below 2^-14, 0 below 2^-24")
    noise: float = _limit(0.1, "mean cosine between the gradients of micro-batches", "a smaller one is noise",
        "McCandlish et al., An empirical model of large-batch training, 2018")
    kept_steps: float = _limit(8, "earlier steps", "a graph of more that still grows is a warning",
        "our runs: healthy trainings carry the graph of no earlier step")
    # the optimizer
    update_ratio_large: float = _limit(0.1, "norm of update / weight", "a larger median over the window is too large",
        "Karpathy, CS231n: a healthy ratio is about 1e-3; this is a hundred times as much")
    update_ratio_small: float = _limit(1e-6, "norm of update / weight", "a smaller maximum of the run is too small",
        "the same rule of thumb; a thousandth of it, so that fine-tuning and warm-up pass")
    update_ratio_lively: float = _limit(0.03, "norm of update / weight",
        "with a larger one the rate makes a loss rise or oscillate", "the same rule of thumb, thirty times")
    stuck: float = _limit(1e-2, "root mean square of the update / learning rate", "an adaptive one below is stuck",
        "Kingma and Ba, Adam, 2015: the step is about the learning rate if gradients keep their size")
    clipped_share: float = _limit(0.95, "share of the steps", "a larger share counts as always", "Pascanu et al., 2013")
    clipped_factor: float = _limit(10.0, "norm before / norm after", "a larger median is a warning, not a note",
        "the effective learning rate is smaller by this factor")
    collapsed: float = _limit(0.01, "learning rate / its largest", "a smaller one has collapsed",
        "PyTorch's tutorials: epochs end it, of hundreds of steps each")
    collapse_steps: float = _limit(500, "steps", "a rate that collapses within them does so at each batch", "the same")
    # attention
    uniform: float = _limit(5e-4, "deviation of the weights / their mean", "less is uniform attention",
        "our runs: small initial weights give 0.01 or more")
    scores: float = _limit(10.0, "standard deviation of the scores", "more is far apart",
        "Vaswani et al., 2017: it is 1 if they are divided by the root of the width; our runs: at most 4")
    one_token: float = _limit(0.98, "mean weight of a head's first token", "more is attention to one token alone",
        "Xiao et al., Efficient streaming language models with attention sinks, 2024: sinks leave some to the others")
    to_padding: float = _limit(0.01, "share of the attention", "more on padding is reported", "our runs: 0 with a mask")
    # the learning rate
    rate_jump: float = _limit(3.0, "learning rate / highest one before", "a larger one after which the loss jumps is "
        "a jump", "our runs: schedules restart at their highest rate, and a warm-up in stages lowers the loss")
    rate_collapse: float = _limit(1e3, "learning rate of the step before / learning rate", "more is a collapse",
        "schedules in stages divide it by 10, some by 100")
    # the loss
    loss_rise: float = _limit(1.5, "loss / loss at the start",
        "if three quarters of the last half are larger, it diverges", "our runs")
    loss_swing: float = _limit(0.6, "negative autocorrelation of the loss at lag 1", "a loss above it oscillates",
        "0 for noise, 1 for a loss that alternates around a minimum")
    spike_factor: float = _limit(2.0, "loss / median of the window before", "a larger loss may be a spike", "our runs")
    spike_sigmas: float = _limit(10.0, "robust standard deviations", "a spike also lies this far above the median",
        "estimated from the median difference between steps, so a trend does not count")
    spike_height: float = _limit(0.5, "share of the loss at the start", "a spike also lies this far above the median",
        "our runs: hard samples late in training are no spikes")
    penalty: float = _limit(4.0, "norm of the penalty's gradient / of the rest", "a larger one drowns the loss",
        "our runs: usual coefficients give less than 0.1 as long as nothing is learnt")
    excess: float = _limit(3.0, "loss above that of a guess, in nats (in guesses below 1 nat)",
        "a larger initial loss is reported",
        "Karpathy, A recipe for training neural networks, 2019: verify loss @ init")
    # the data
    target_size: float = _limit(100.0, "root mean square", "larger targets may be too large for the outputs",
        "LeCun et al., Efficient backprop, 1998, 4.5; our runs")
    target_ratio: float = _limit(30.0, "root mean square of the targets / of the outputs", "a larger one is too large",
        "our runs: outputs and targets of the same scale need no factor to be learnt")
    input_size: float = _limit(10.0, "absolute mean, or standard deviation", "a larger one is not normalised",
        "LeCun et al., Efficient backprop, 1998: mean 0, deviation 1")
    input_small: float = _limit(0.02, "standard deviation", "inputs that all vary less are not normalised",
        "the same; rows scaled to norm 1 of up to 2500 features vary more")
    input_spread: float = _limit(1e3, "largest / smallest deviation of a feature", "more is not normalised", "the same")
    conflicts: float = _limit(0.05, "share of the samples", "more contradictory samples are reported",
        "Zhang et al., Understanding deep learning requires rethinking generalization, 2017: any labels can be fit")
    plateau: float = _limit(0.01, "relative change of loss in a quarter of a run", "less is a plateau", "our runs")
    # time
    window: float = _limit(20, "watched steps", "the length of the window of a moving median")
    enough: float = _limit(10, "watched steps", "a shorter run is not judged over time")
    # fmt: on

    def __post_init__(self) -> None:
        for each in fields(self):
            given = getattr(self, each.name)
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
                raise ThresholdError(
                    f"Thresholds({each.name}={given!r}): the value must be a finite number of 0 or more "
                    f"({each.metadata['unit']}). The default is {each.default:g}."
                )


def check_thresholds(given: Thresholds | None) -> Thresholds:
    """The given thresholds, or the defaults for None. Raises ThresholdError for anything else."""
    if given is not None and not isinstance(given, Thresholds):
        raise ThresholdError(
            f"thresholds={given!r}: give a chainrule.Thresholds, as in chainrule.Thresholds(update_ratio_large=0.3)."
        )
    return given or Thresholds()
