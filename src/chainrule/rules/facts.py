"""Facts of ATen operations that the rest of the package asks for: what moves data, what weighs, what is linear in what.

They are kept by an operation's base name (`addmm`), or by one overload's (`div.Tensor`) where the others differ. A rule
brings the facts of its own operation, `rule(..., facts={"mylib.scale": Facts(keeps_numbers=True)})`. Those of PyTorch's
stand here, apart from the rules, since recording needs some of them and does not read the rules.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
Index = tuple[Any, ...]

STRIDED = torch.ops.aten.as_strided.default
"""The operation that makes any view of a memory."""


PYTORCH = frozenset({
    "aten", "prim", "prims", "prims_jvp", "mkldnn", "mkldnn_prepacked", "mkl", "onednn", "sparse", "quantized",
    "_quantized", "quantization", "_native", "c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor",
    "symm_mem", "fsdp", "inductor", "inductor_prims", "rngprims", "debugprims", "debug_mode_ops", "profiler",
    "static_runtime", "export", "higher_order",
})  # fmt: skip
"""The namespaces of PyTorch's own operators."""


@dataclass(frozen=True)
class Slope:
    """The slope of a function that saturates, from the mean m of its results, their mean square s, and n classes."""

    formula: str
    mean: Callable[[float, float, int], float]
    most: Callable[[int], float]
    of_rows: bool = False  # each row of n classes has one slope


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an operation besides its derivatives. A field's default says that nothing is known.

    While a step is recorded, the first group is asked: it must be known before the first recording.
    """

    bypassable: bool = False  # elementwise; it writes nothing, draws nothing, and autocast leaves it alone
    undeclared_view: bool = False  # its result shares the operand's memory, and its schema does not say so
    undeclared_writes: tuple[str, ...] = ()  # arguments that it overwrites, though its schema does not say so
    detaches: bool = False  # autograd saves results with it
    casts_inside: bool = False  # autocast casts what it calls, and not it itself
    copies: bool = False  # what PyTorch runs below autograd where an operation needs its argument in another form
    uncounted: bool = False  # the versions of the tensors that it overwrites do not count it
    sets_zero: bool = False  # it clears its operands, as `zero_grad` does
    only_reshapes: bool = False  # its result is the same memory in another shape, and so is its gradient
    takes_numbers: bool = False  # in place of its first tensor too, unlike most operations
    part_written: Callable[[Arguments], Index] | None = None  # the index of what it overwrites, if that is not all

    draw: tuple[int, Callable[..., Tensor]] | None = None
    """The output that contains what was drawn, and how the result follows: `f(arguments, draw=output)`."""
    unwritten: tuple[int, ...] = ()  # outputs that are memory to which nothing was written
    linear: Mapping[str, Callable[[Arguments], Arguments]] = field(default_factory=dict)
    """Arguments in which it is linear: from all arguments, those that leave the terms with this one alone."""
    sums_operands: bool = False  # each of its operands is a term, up to a factor
    adds: bool = False  # its operands, element by element
    chooses: bool = False  # the smaller or the larger one of its operands, element by element
    multiplies: bool = False  # its operands, element by element
    scales: bool = False  # one operand, if the other one is a number
    matrix_product: bool = False
    drops: bool = False  # elements of its operand, at random
    draws_around: tuple[str, ...] = ()  # the arguments with the mean and the deviation of what it draws
    samples_at: str = ""  # the argument with the places, from -1 to 1, at which it samples its operand
    mask: str = ""  # the argument that says which elements are replaced, or kept
    replaces_masked: bool = False  # by `value`, where the mask is True
    communicates: bool = False  # with other ranks
    lifts: bool = False  # its operand was just made from plain numbers, by PyTorch itself
    constrained: str = ""  # why the elements of its argument cannot be moved one by one
    updates_loss_scale: bool = False
    unscales: bool = False  # it divides gradients by the scale of the loss

    keeps_numbers: bool = False  # it changes only their shape, order or number type
    in_row_order: bool = False  # its result has the same numbers one after the other, in another shape
    weighs: tuple[str, str] | None = None  # it multiplies an input by a weight: the names of these arguments
    looks_up: str = ""  # the argument with the indices of the rows that it looks up
    fills: bool = False  # it overwrites all of `self`, whatever that contains
    filled_by_ranks: bool = False  # other ranks fill its results, or may
    gathers_shards: bool = False  # of FSDP2, into memory that is arbitrary until then
    infinite: tuple[int, ...] = ()  # outputs that are infinite by nature, as the logarithms of probabilities of 0
    limits: bool = False  # it keeps its results above a bound, or below one
    singular: str = ""  # the argument at whose 0 its result or its derivative is infinite
    exponential: bool = False
    advice: str = ""  # what helps where its result is not finite
    undefined: str = ""  # why its result is NaN, where there is one usual reason
    overflows: bool = False  # its result may be too large for its number type
    notation: str = ""  # two operands as a calculation, `{} + {}`
    calculates: Callable[[float, float], float] | None = None  # the same with two numbers
    passes_gradient: bool = False  # a gradient that is not 0 reaches an operand as one that is not 0
    difference: bool = False  # of two operands
    complements: bool = False  # it subtracts its operand from a number
    negates: bool = False
    averages: bool = False  # the elements of its operand
    blends: bool = False  # neighbouring elements of its operand, by their distances
    adds_up: bool = False  # the elements of its operand
    picks: bool = False  # elements of its operand by their indices
    joins: bool = False  # tensors, side by side
    takes_rows: bool = False  # of its operand by their indices, or of tensors that it puts together
    reads_number: bool = False  # its result is a number of Python's
    logarithm: bool = False
    logarithm_of_probability: bool = False  # by itself, as log_softmax
    sums_exponentials: bool = False  # and takes the logarithm of the sum
    makes_constant: bool = False  # its result has one number everywhere
    measures: bool = False  # it measures the size of a difference
    largest: bool = False  # its first result is the largest element of its operand, or along an axis
    likens: bool = False  # it measures how alike two operands are: more is more alike
    counts_events: bool = False  # a loss of counts, whose rate is the exponential of its prediction by default
    shares_target: bool = False  # the target of a loss, among its arguments, may be the share of each class
    lists_labels: bool = False  # the target of a loss lists the indices of labels, and -1 ends a list
    size: str = ""  # what it takes of its operand, or of a difference: "squares", "sizes" or "norm"
    bounds: Callable[[Arguments], tuple[float, float]] | None = None  # of its results
    slope: Slope | None = None
    sigmoid: bool = False
    softmax: bool = False
    rectifies: bool = False  # 0 for operands below a threshold
    compares: bool = False  # a loss between a prediction, `self`, and a `target`
    broadcasts_target: bool = False
    class_target: bool = False  # its target is the index of a class
    signed_target: int = 0  # the place, among the arguments of a function, of its target of 1 and -1
    takes: str = ""  # what a loss expects: "probabilities", "logits", "scores" (of classes), "log-probabilities"
    not_logarithms: str = ""  # what its results are, where they are certainly not logarithms of probabilities
    channels: bool = False  # units lie along axis 1 of its result
    normalises: bool = False
    attends: bool = False  # a softmax over positions, or attention as a whole
    takes_part: bool = False  # its results are parts of its operand, by their places
    slices: bool = False  # its result is a range of the positions along one axis
    cuts: bool = False  # its results are parts of its operand, without a common element
    uses_batch: Callable[[Arguments], bool] | None = None  # whether a batch norm uses the statistics of its batch


NOTHING = Facts()
_known: dict[str, dict[str, Any]] = {}  # by base name, by `base.overload`, or by a namespace and its dot


def register_facts(facts: Mapping[str, Facts]) -> None:
    """Add the facts of operations, by name: `addmm`, `div.Tensor`, `mylib.scale`."""
    for name, given in facts.items():
        said = {each.name: getattr(given, each.name) for each in fields(Facts)}
        _add(name, **{key: value for key, value in said.items() if value != getattr(NOTHING, key)})
    facts_of.cache_clear()
    facts_of_node.cache_clear()


def _add(names: str, **facts: Any) -> None:
    for name in names.split():
        _known.setdefault(name, {}).update(facts)


@cache
def facts_of(name: str) -> Facts:
    """The facts of an operation by its name, `aten.addmm.default`: of its namespace, its base name and its overload.

    An operation in place has the facts of the other form as well.
    """
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    bases = [base] if namespace == "aten" else [f"{namespace}.{base}"]
    if base.endswith("_") and not base.endswith("__"):
        bases.insert(0, bases[0].removesuffix("_"))
    keys = [f"{namespace}.", *(key for each in bases for key in (each, f"{each}.{overload}"))]
    found: dict[str, Any] = {}
    for key in keys if rest else []:  # an autograd.Function has no namespace
        found |= _known.get(key, {})
    return Facts(**found) if found else NOTHING


def facts_of_call(name: str) -> Facts:
    """The facts of a torch function: of itself (`cross_entropy`), or of the ATen operation of the same name."""
    return facts_of(f"aten.{name}.default")


@cache
def facts_of_node(node: str) -> Facts:
    """The facts of the ATen operation that made an autograd node, from its name: `UnsafeViewBackward0`."""
    made = re.fullmatch(r"(\w+)Backward\d+", node)  # that of an autograd.Function has no number
    if made is None:
        return NOTHING
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", made[1]).lower()
    return facts_of_call(name if name in _known else f"_{name}")


@cache
def base_name(name: str) -> str:
    """`addmm` of `aten.addmm.default`."""
    return name.removeprefix("aten.").split(".")[0]


# -- recording --------------------------------------------------------------------------------------------------------

_add("abs add cos div maximum minimum mul neg relu rsub sigmoid silu sin sqrt sub tanh", bypassable=True)
_add("_unsafe_view unsafe_chunk unsafe_split unsafe_split_with_sizes", undeclared_view=True)
_add(
    "batch_norm native_batch_norm cudnn_batch_norm miopen_batch_norm _batch_norm_impl_index batch_norm_update_stats "
    "batch_norm_gather_stats batch_norm_gather_stats_with_counts",
    undeclared_writes=("running_mean", "running_var"),
)
_add("detach", detaches=True)
_add("_trilinear", casts_inside=True)
_add("linalg_pinv", casts_inside=True)
_add("clone _to_copy", copies=True)
_add("zero_ _foreach_zero_", sets_zero=True)
_add("t transpose view _unsafe_view", only_reshapes=True)
_add("add sub mul div floor_divide fmod remainder _conj", takes_numbers=True)


def _rows(arguments: Arguments) -> Index:
    dim = arguments["dim"] % max(arguments["self"].dim(), 1)
    return (*(slice(None),) * dim, arguments["index"].clone())


def _scattered(arguments: Arguments) -> Index:
    index, dim = arguments["index"], arguments["dim"] % max(arguments["self"].dim(), 1)
    places = [
        torch.arange(n, device=index.device).view(-1, *(1,) * (index.dim() - i)) for i, n in enumerate(index.shape, 1)
    ]
    return (*places[:dim], index.clone(), *places[dim + 1 :])


def _indexed(arguments: Arguments) -> Index:
    return tuple(slice(None) if each is None else each.clone() for each in arguments["indices"])


def _masked(arguments: Arguments) -> Index:
    return tuple(arguments["mask"].expand_as(arguments["self"]).nonzero(as_tuple=True))


_add("index_copy_ index_add_ index_fill_ index_reduce_", part_written=_rows)
_add("scatter_ scatter_add_ scatter_reduce_", part_written=_scattered)
_add("index_put_ _index_put_impl_", part_written=_indexed)
_add("masked_fill_ masked_scatter_", part_written=_masked)

# -- running again ----------------------------------------------------------------------------------------------------


def _dropped(arguments: Arguments, draw: Tensor) -> Tensor:
    kept = 1 - arguments["p"]
    dropped: Tensor = arguments["input"] * draw * (1 / kept if kept else 0.0)
    return dropped


_add("native_dropout", draw=(1, _dropped))
_add(
    "empty empty_like empty_strided empty_permuted empty_quantized new_empty new_empty_strided "
    "_empty_affine_quantized _empty_per_channel_affine_quantized",
    unwritten=(0,),
)
_add("mkldnn_rnn_layer", unwritten=(3,))  # its workspace
_add("_amp_update_scale_", updates_loss_scale=True)
_add("_amp_foreach_non_finite_check_and_unscale_", unscales=True, uncounted=True)

# -- the gradient check -----------------------------------------------------------------------------------------------

SYMMETRIC = "its argument stands for a symmetric matrix, of which it reads one triangle"
_add("cholesky linalg_cholesky_ex _linalg_eigh", constrained=SYMMETRIC)
_add("cholesky_inverse cholesky_solve", constrained="its argument stands for a triangular matrix")
_add(
    "native_layer_norm_backward native_batch_norm_backward",
    constrained="the statistics that it is given are those of its `input`, whose gradient counts their change too",
)
_add(
    "_ctc_loss _cudnn_ctc_loss",
    constrained="its argument stands for logarithms of probabilities, which add up to one",
    infinite=(1,),  # the logarithms of probabilities of paths, which only the backward pass reads
)


def _alone(arguments: Arguments) -> Arguments:
    return arguments


def _zeroed(name: str) -> Callable[[Arguments], Arguments]:
    """The term that does not hold the argument, set to zero."""

    def without(arguments: Arguments) -> Arguments:
        held = arguments[name]
        return {**arguments, name: torch.zeros_like(held) if isinstance(held, Tensor) else held and 0}

    return without


def _without_product(arguments: Arguments) -> Arguments:
    """Matrices without the axis that their product sums over."""
    return {**arguments, "mat1": arguments["mat1"][:, :0], "mat2": arguments["mat2"][:0]}


def _pieces(arguments: Arguments) -> Arguments:
    return {**arguments, "tensors": [torch.zeros_like(each) for each in arguments["tensors"]]}


_add(
    "t.default view.default _unsafe_view.default transpose.int permute.default expand.default unsqueeze.default "
    "squeeze.default squeeze.dim squeeze.dims slice.Tensor select.int split.Tensor split_with_sizes.default unbind.int "
    "alias.default clone.default neg.default sum.default sum.dim_IntList mean.default mean.dim index_select.default "
    "gather.default mul.Scalar div.Scalar div.Tensor nll_loss_forward.default",
    linear={"self": _alone},
)
_add("add.Tensor sub.Tensor", linear={"self": _zeroed("other"), "other": _zeroed("self")})
_add("mul.Tensor", linear={"self": _alone, "other": _alone})
_add("mm.default bmm.default", linear={"self": _alone, "mat2": _alone})
_add("addmm.default", linear={"self": _without_product, "mat1": _zeroed("self"), "mat2": _zeroed("self")})
_add("add sub", sums_operands=True)
_add("add", adds=True)
_add("maximum minimum", chooses=True)
_add("index index_select stack", takes_rows=True)
_add("cat", joins=True)
_add("mul", multiplies=True)
_add("mul div", scales=True)
_add("mm bmm baddbmm", matrix_product=True)
_add("native_dropout", drops=True)
_add("normal.Tensor_Tensor", draws_around=("mean", "std"))
_add("grid_sampler_2d grid_sampler_3d grid_sampler", samples_at="grid")
_add("masked_fill", mask="mask", replaces_masked=True)
_add("where", mask="condition")
_add("embedding.default", linear={"weight": _alone})
_add("cat.default stack.default", linear={"tensors": _pieces})

# -- diagnostics: where numbers come from -----------------------------------------------------------------------------

_add(
    "view _unsafe_view reshape _reshape_alias squeeze unsqueeze t transpose permute expand clone alias contiguous "
    "_to_copy flatten select slice lift_fresh movedim",
    keeps_numbers=True,
)
_add("view _unsafe_view reshape _reshape_alias expand", in_row_order=True)
_add("mm bmm", weighs=("self", "mat2"))
_add("addmm", weighs=("mat1", "mat2"))
_add("baddbmm", weighs=("batch1", "batch2"))
_add("mv", weighs=("self", "vec"))
_add("addmv", weighs=("mat", "vec"))
_add("linear convolution _convolution", weighs=("input", "weight"))
_add("embedding", looks_up="indices")
_add("uniform_ normal_ zero_ fill_ copy_ random_ bernoulli_ exponential_ log_normal_ cauchy_ geometric_", fills=True)
_add("fsdp.", gathers_shards=True)
_add("lift lift_fresh", lifts=True)
_add("fsdp. c10d. _c10d_functional. _c10d_functional_autograd. symm_mem.", communicates=True)
_add("fsdp. c10d. as_strided", filled_by_ranks=True)  # FSDP2 makes such views of its buffers
_add("addmm mm linear _to_copy convolution view t mul add", passes_gradient=True)

# -- diagnostics: numbers that are not finite -------------------------------------------------------------------------

_add("relu clamp clamp_min clamp_max hardtanh threshold", limits=True)
_add("log log2 log10 sqrt rsqrt reciprocal pow", singular="self")
_add("div", singular="other")
_add("exp expm1 sinh cosh", exponential=True)
OF_NOTHING = "The mean is over no elements: look at the mask or the batch that was selected."
_add(
    "log log2 log10 log1p",
    advice="Keep the operand of the logarithm above 0: clamp it, add an epsilon, or use a loss that takes logits.",
)
_add(
    "exp expm1 sinh cosh",
    advice="Bound the exponent: clamp it, scale it down, or use a function that grows more slowly, such as softplus.",
)
_add(
    "div reciprocal",
    advice="Keep the divisor away from 0: add a small epsilon to it, or leave those elements out before dividing.",
)
_add(
    "sqrt rsqrt",
    advice="Keep the operand of the root above 0: add a small epsilon inside it, or clamp it before the root.",
)
_add(
    "softmax log_softmax _softmax _log_softmax _safe_softmax",
    advice="Leave at least one place of each row unmasked, or mask with a large negative number instead of -inf.",
    undefined="A row that is -inf everywhere (fully masked) has no softmax: 0 / 0.",
)
_add("mean", advice=OF_NOTHING, undefined="The mean of too few numbers is 0 / 0.")
_add("var", advice="A variance needs two numbers or more: use correction=0, or look at the shape.")
_add("var var_mean", undefined="The var of too few numbers is 0 / 0.")
_add(
    "std",
    advice="Add a small epsilon to the variance and take its root, instead of the standard deviation.",
    undefined="The std of too few numbers is 0 / 0.",
)
_add("norm linalg_vector_norm", advice="Add a small epsilon inside the norm, or leave out the rows that are 0.")
_add("exp expm1 sinh cosh add sub mul pow square prod sum cumsum mm bmm addmm _to_copy", overflows=True)
for _name, _sign, _function in (
    ("add", "+", operator.add), ("sub", "-", operator.sub), ("mul", "*", operator.mul), ("div", "/", operator.truediv),
):  # fmt: skip
    _add(_name, notation=f"{{}} {_sign} {{}}", calculates=_function)
_add("pow", notation="pow({}, {})")

# -- diagnostics: activations and losses ------------------------------------------------------------------------------


def _plain(limit: Any, without: float) -> float:
    """A limit that is a number."""
    return float(limit) if isinstance(limit, (int, float)) else without


_UNIT, _POSITIVE = (lambda arguments: (0.0, 1.0)), (lambda arguments: (0.0, math.inf))
_add("sigmoid _softmax hardsigmoid", bounds=_UNIT)
_add("relu softplus exp abs square", bounds=_POSITIVE)
_add("_log_softmax log_sigmoid_forward", bounds=lambda arguments: (-math.inf, 0.0), logarithm_of_probability=True)
_add("gelu silu hardswish", bounds=lambda arguments: (-0.5, math.inf))
_add("elu", bounds=lambda arguments: (-arguments.get("alpha", 1) * arguments.get("scale", 1), math.inf))
_add(
    "clamp clamp_min clamp_max",
    bounds=lambda arguments: (_plain(arguments.get("min"), -math.inf), _plain(arguments.get("max"), math.inf)),
)
_add("tanh sin cos", bounds=lambda arguments: (-1.0, 1.0))
_add("hardtanh", bounds=lambda arguments: (arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)))
ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
_add(f"_softmax _safe_softmax {ATTENTIONS}", attends=True)
_add("slice", slices=True)
_add("select slice unbind split chunk index index_select", takes_part=True)
_add("split split_with_sizes unbind unsafe_split unsafe_split_with_sizes unsafe_chunk", cuts=True)
_add("relu threshold", rectifies=True)
_add("sigmoid", sigmoid=True, slope=Slope("a(1 - a)", lambda m, s, n: m - s, lambda n: 0.25))
_add("tanh", slope=Slope("1 - a^2", lambda m, s, n: 1 - s, lambda n: 1.0))
_add("_safe_softmax", softmax=True)
_add("_softmax", softmax=True, slope=Slope("1 - sum p^2", lambda m, s, n: 1 - s * n, lambda n: 1 - 1 / n, of_rows=True))
_add("_softmax", not_logarithms="probabilities (a softmax)")
_add("sigmoid", not_logarithms="probabilities (a sigmoid)")
_add("relu", not_logarithms="the output of a ReLU")
_add(
    "mse_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits nll_loss_forward "
    "nll_loss2d_forward soft_margin_loss l1_loss",
    compares=True,
)
_add("mse_loss l1_loss smooth_l1_loss huber_loss", broadcasts_target=True)
_add("cosine_embedding_loss margin_ranking_loss", signed_target=2)
_add("hinge_embedding_loss soft_margin_loss", signed_target=1)
_add("binary_cross_entropy", takes="probabilities")
_add("binary_cross_entropy_with_logits", takes="logits")
_add("_log_softmax", takes="scores")
_add("nll_loss_forward nll_loss2d_forward _ctc_loss", takes="log-probabilities")
_add("nll_loss_forward nll_loss2d_forward", class_target=True)
_add("sub", difference=True)
_add("rsub.Scalar", complements=True)
_add("neg", negates=True)
_add("mean", averages=True)
_add(
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa",
    blends=True,
)
_add("sum", adds_up=True)
_add("pow abs square mul norm linalg_vector_norm", measures=True)
_add("mse_loss square", size="squares")
_add("l1_loss abs", size="sizes")
_add("norm linalg_vector_norm", size="norm")
_add("gather index", picks=True)
_add("max amax", largest=True)
_add("cosine_similarity", likens=True)
_add("poisson_nll_loss", counts_events=True)
_add("multilabel_margin_loss multilabel_margin_loss_forward", lists_labels=True)
_add("cross_entropy", shares_target=True)
_add("_local_scalar_dense", reads_number=True)
_add("log", logarithm=True)
_add("logsumexp", sums_exponentials=True)
_add("zeros_like ones_like full_like new_zeros new_ones new_full", makes_constant=True)

# -- diagnostics: layers ----------------------------------------------------------------------------------------------

_BATCH_NORMS = (
    "batch_norm native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _batch_norm_impl_index "
    "_native_batch_norm_legit_functional"
)
_OF_BATCH = "_batch_norm_with_update _batch_norm_with_update_functional"
_OTHER = "_batch_norm_no_update _native_batch_norm_legit_no_training batch_norm_elemt native_group_norm group_norm"
_add(_BATCH_NORMS, uses_batch=lambda arguments: bool(arguments.get("training", False)))
_add(_OF_BATCH, uses_batch=lambda arguments: True)
_add(f"{_BATCH_NORMS} {_OF_BATCH} {_OTHER} instance_norm", channels=True, normalises=True)
_add("native_layer_norm layer_norm _fused_rms_norm rms_norm", normalises=True)
_add(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution "
    "convolution_overrideable cudnn_convolution cudnn_convolution_transpose mkldnn_convolution miopen_convolution "
    "miopen_convolution_transpose miopen_depthwise_convolution _mps_convolution _mps_convolution_transpose thnn_conv2d "
    "_slow_conv2d_forward slow_conv3d slow_conv3d_forward slow_conv_transpose2d slow_conv_transpose3d "
    "slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d",
    channels=True,
)
