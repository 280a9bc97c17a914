"""A number of ours held against PyTorch's: what the telling says of the two, side by side.

Equal to the last bit is the usual case and the cheapest question. Where the two differ, large tensors are subtracted
part by part; a difference of no more than rounding agrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor as Data

from chainrule.document import Text, Verdict
from chainrule.graph.snapshot import all_have_numbers
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache, differences

FEW = 2**16  # numbers up to which every pass is cheap


def held_against(measures: StatisticsCache, ours: Data, theirs: Data, text: Text, passing: bool = False) -> Verdict:
    """Hold our number against PyTorch's: `agrees` where they differ by no more than rounding.

    Nothing is kept of `ours` where it is `passing`, made to be held against something once.
    """
    if not all_have_numbers(ours, theirs):
        return Verdict("not checked", ("not checked: the numbers were not kept",))
    bound = tolerance(theirs, measures.statistics(theirs))
    if measures.are_twins(ours, theirs, passing):
        return Verdict("agrees", text, 0.0, bound)
    if theirs.numel() <= FEW or not _plain(measures, ours, theirs):
        return agreement(ours, theirs, text, bound)
    largest = [part.abs_().amax().item() for part in differences(ours, theirs)]
    if not all(map(math.isfinite, largest)):  # of ours, as theirs are finite
        return agreement(ours, theirs, text, bound)
    return Verdict("agrees" if max(largest) <= bound else "disagrees", text, max(largest), bound)


def _plain(measures: StatisticsCache, ours: Data, theirs: Data) -> bool:
    """Whether two large tensors can be subtracted part by part, and PyTorch's numbers are all finite."""
    alike = ours.dtype == theirs.dtype and all(each.layout == torch.strided for each in (ours, theirs))
    return alike and theirs.is_floating_point() and ours.shape == theirs.shape and measures.finite(theirs)


def tolerance(data: Data, found: Statistics) -> float:
    """What rounding may do to a gradient: some hundred units in the last place of its largest finite element."""
    if not (data.is_floating_point() or data.is_complex()) or not data.numel():
        return 0.0
    return 256 * torch.finfo(data.dtype).eps * max(abs(found.low), abs(found.high), 1e-30)


def agreement(ours: Data, theirs: Data, text: Text, bound: float) -> Verdict:
    """Hold our number against PyTorch's, whatever the two tensors hold and however they are laid out."""
    theirs = theirs.to_dense() if theirs.layout is not torch.strided else theirs
    ours = (ours.to_dense() if ours.layout is not torch.strided else ours).to(theirs.dtype)
    same = torch.isclose(ours, theirs, rtol=0, atol=bound, equal_nan=True)
    apart = (ours - theirs).abs()
    difference = apart.max().item() if apart.numel() else 0.0
    if math.isnan(difference):  # both NaN in one place, which is no difference, or in one of them only
        apart = apart[~(ours.isnan() & theirs.isnan())]
        difference = apart.max().item() if apart.numel() else 0.0
    return Verdict("agrees" if bool(same.all()) else "disagrees", text, difference, bound)
