"""Sentences for the exceptions of layers and operations, by what PyTorch's message says."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod

from chainrule.graph.graph import Failure, GivenTensor
from chainrule.graph.snapshot import type_name
from chainrule.numbers import number

Explained = tuple[str, tuple[str, ...], str, bool]
"""What happened, the evidence, what to try, and whether autograd forbids it."""
Advice = Callable[[re.Match[str], Failure], tuple[str, str]]


def explained(failure: Failure) -> Explained:
    """What an exception of a forward pass is about."""
    message = failure.error.partition(": ")[2]
    evidence = tuple(_shown(each) for each in failure.given)
    for pattern, sentence in FORBIDDEN.items():
        if (found := re.search(pattern, message)) is not None:
            return (*_in_order(sentence(found, failure), evidence), True)
    for pattern, sentence in KNOWN.items():
        if (found := re.search(pattern, message)) is not None:
            return (*_in_order(sentence(found, failure), evidence), False)
    if not failure.called:  # it may be no exception of PyTorch's
        return "", (), "", False
    first = failure.error.split("\n")[0].rstrip(".")
    return f"{_who(failure)} raised {first}.", evidence, "", False


def _in_order(said: tuple[str, str], evidence: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    return said[0], evidence, said[1]


def _who(failure: Failure) -> str:
    """`Layer 3, Linear(in_features=3, ...),`, or what the user wrote, or the function that was called."""
    if failure.layer:
        named = re.fullmatch(r"[A-Za-z_]\w*", failure.module) is not None
        where = f"{failure.module}, " if named else f"Layer {failure.module}, " if failure.module else ""
        return f"{where}{failure.layer}," if where else failure.layer
    written = failure.place.expression if failure.place is not None else ""
    return f"`{written}`" if 0 < len(written) <= 60 else f"`{failure.called}`" if failure.called else "An operation"


def _shown(given: GivenTensor) -> str:
    between = "" if given.low is None else f", from {number(given.low)} to {number(given.high or 0.0)}"
    device = "" if given.device == "cpu" else f" on {given.device}"
    return f"{given.name or 'a tensor'}: shape {given.shape}, {type_name(given.dtype)}{device}{between}."


def _of(failure: Failure, *names: str) -> GivenTensor | None:
    """The tensor of one of these names."""
    return next((each for name in names for each in failure.given if each.name == name), None)


def _product(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    _, got, takes, _ = (int(each) for each in found.groups())
    if not failure.layer.startswith("Linear"):
        text = f"{_who(failure)} multiplies a matrix with {got} columns by one with {takes} rows."
        return text, "Transpose one of them, or look at the shapes of what they are computed from."
    given = _of(failure, "input")
    text = f"{_who(failure)} takes {takes} features, and its input has {got} in the last dimension."
    advice = f"Give it in_features={got}, or make what comes before it end in {takes} features."
    shape = given.shape if given is not None else ()
    if len(shape) > 2 and shape[-1] == got and prod(shape[1:]) == takes:
        advice = "Flatten the input first: nn.Flatten(), or x.flatten(1)."
    return text, advice


def _channels(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    takes, got = found.groups()
    given = _of(failure, "input")
    advice = f"Give it in_channels={got}, or feed it {takes} channels."
    if given is not None and given.shape and str(given.shape[-1]) == takes:
        advice = "The channels are in the last dimension: permute(0, 3, 1, 2) puts them first."
    return f"{_who(failure)} takes {takes} channels, and its input has {got} in dimension 1.", advice


def _index(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    rows, indices = _of(failure, "weight"), _of(failure, "input")
    count = rows.shape[0] if rows is not None and rows.shape else None
    met = _range(indices)
    has = f"has {count} rows, 0 to {count - 1}" if count is not None else "has fewer rows"
    text = f"{_who(failure)} {has}, and it was asked for indices {met}."
    low = indices is not None and indices.low is not None and indices.low < 0
    advice = "An index below 0 is no row: map padding to an index of its own (padding_idx)." if low else (
        "Make num_embeddings the size of the vocabulary, special tokens included, or look at where indices come from."
    )  # fmt: skip
    return text, advice


def _range(given: GivenTensor | None) -> str:
    if given is None or given.low is None or given.high is None:
        return "out of that range"
    return f"from {number(given.low)} to {number(given.high)}"


def _class(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    scores, targets = _of(failure, "input"), _of(failure, "target")
    count = None if scores is None or not scores.shape else scores.shape[min(1, len(scores.shape) - 1)]
    has = f"has scores of {count} classes, 0 to {count - 1}" if count is not None else "has fewer classes"
    text = f"{_who(failure)} {has}, and a target is {found[1]}; they lie {_range(targets)}."
    if targets is not None and targets.low == 1 and targets.high == count:
        return text, "The labels begin at 1: subtract 1."
    return text, "Give the last layer one output for each class, or ignore_index= the label that means nothing."


def _outside(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    index, dimension, size = found.groups()
    text = (
        f"{_who(failure)} was asked for index {index} of dimension {dimension}, which has {size}: 0 to {int(size) - 1}."
    )
    return text, "Look at where the index comes from."


def _types(found: re.Match[str], failure: Failure) -> tuple[str, str]:
    one, other = found.groups()
    text = f"{_who(failure)} got {one} and {other}, which it cannot combine."
    advice = "Convert the input to the type of the weights: x.float(), or .to(weight.dtype)."
    if "Double" in (one, other):
        advice += " NumPy's numbers are float64: torch.from_numpy(x).float()."
    return text, advice


def _said(advice: str) -> Advice:
    """The message in one sentence, with this advice."""
    return lambda found, failure: (f"{_who(failure).rstrip(',')}: {found[0].rstrip('.')}.", advice)


FORBIDDEN: dict[str, Advice] = {
    r"a view of a leaf Variable that requires grad is being used in an in-place": lambda found, failure: (
        f"{_who(failure)} writes to a part of a leaf that requires a gradient; autograd could not go back.",
        "Write under torch.no_grad() to initialise it, or to a clone() in the forward pass.",
    ),
    r"a leaf Variable that requires grad is being used in an in-place operation": lambda found, failure: (
        f"{_who(failure)} writes in place to a leaf that requires a gradient; autograd could not go back.",
        "Change a parameter under torch.no_grad(), or write to a new tensor (`w = w - lr * w.grad` is no parameter).",
    ),
    r"is a view and is being modified inplace": lambda found, failure: (
        f"{_who(failure)} writes in place to a view that autograd cannot follow.",
        "Write to a clone() of the view, or out of place; of split, chunk and unbind every result is such a view.",
    ),
    r"A view was created in (no_grad|inference) mode": lambda found, failure: (
        f"{_who(failure)} writes in place to a view that was made in {found[1]} mode.",
        "Make the view with gradients enabled, or write under no_grad() too.",
    ),
    r"Inference tensors cannot be saved for backward|Inplace update to inference tensor": lambda found, failure: (
        f"{_who(failure)} uses a tensor that was made in inference_mode(), which autograd may not save.",
        "Make it under no_grad() instead, or clone() it outside of inference_mode().",
    ),
    r"only Tensors of floating point": lambda found, failure: (
        f"{_who(failure)} asks for the gradient of integers, which have none.", "Convert to float first.",
    ),
    r"Can't call numpy\(\) on Tensor that requires grad": lambda found, failure: (
        f"{_who(failure)} turns a tensor with a gradient into an array, which has no history.",
        "Use .detach().numpy() for what is only looked at; for a loss stay with tensors.",
    ),
}  # fmt: skip
"""What autograd forbids, by its message."""

KNOWN: dict[str, Advice] = {
    r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)": _product,
    r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels": _channels,
    r"index out of range in self": _index,
    r"Target (-?\d+) is out of bounds": _class,
    r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)": _outside,
    r"must have the same dtype, but got (\w+) and (\w+)": _types,
    r"Input type \((.+?)\) and (?:weight|bias) type \((.+?)\) should be the same": _types,
    r"expected (?:scalar type|m1 and m2 to have the same dtype).*": _said("Convert the input: x.float(), y.long()."),
    r"Expected input_lengths to have value at most (\d+), but got value (\d+)": lambda found, failure: (
        f"{_who(failure)} got an input length of {found[2]}, and the log-probabilities have {found[1]} time steps.",
        "input_lengths are counted after the network's strides: divide them as it does.",
    ),
    r"Expected tensor to have size at least (\d+) at dimension 1, but got size (\d+) for argument #2 'targets'":
    lambda found, failure: (
        f"{_who(failure)} got a target length of {found[1]}, and the targets are padded to {found[2]}.",
        "target_lengths must not exceed the width of targets.",
    ),
    r"expected target dtype to be Long.*": _said(
        "Class indices are integers: y.long(). Probabilities need the shape of the scores."),
    r"(?:0D or 1D target tensor expected|multi-target not supported).*": _said(
        "Targets of classes have the shape (N,): y.squeeze(1), or y.argmax(1) of one-hot rows."),
    r"Expected input batch_size \((\d+)\) to match target batch_size \((\d+)\)": lambda found, failure: (
        f"{_who(failure)} got {found[1]} rows of scores and {found[2]} targets.",
        "Keep the samples of scores and targets together: check view() and the last, smaller batch.",
    ),
    r"Target size \(.*?\) must be the same as input size \(.*?\)": _said(
        "Give both the same shape: y.unsqueeze(1), or squeeze(1) of the output."),
    r"Using a target size .*? that is different to the input size \S+ \S+": _said(
        "Give both the same shape: y.unsqueeze(1), or squeeze(1) of the output."),
    r"all elements of (?:input|target) should be between 0 and 1": _said(
        "Pass logits to binary_cross_entropy_with_logits, and targets of 0 and 1."),
    r"result type (\w+) can't be cast to the desired output type (\w+)": _said("Convert the target: y.float()."),
    r"Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int": _said(
        "Indices are integers: x.long()."),
    r"running_mean should contain (\d+) elements not (\d+)": lambda found, failure: (
        f"{_who(failure)} is made for {found[2]} channels, and its input has {found[1]}.",
        f"Give it num_features={found[1]}.",
    ),
    r"Given normalized_shape=(\[.*?\]), expected input with shape \[.*?\], but got input of size(\[.*?\])":
    lambda found, failure: (
        f"{_who(failure)} normalises over {found[1]}, and its input has the shape {found[2]}.",
        "normalized_shape is the end of the input's shape.",
    ),
    r"Expected more than 1 value per channel when training": _said(
        "A batch of one has no variance: drop_last=True in the loader, eval(), or a GroupNorm or LayerNorm."),
    r"expected (.*?D.*?) input \(got (\d)D input\)": lambda found, failure: (
        f"{_who(failure)} takes {found[1]} input, and got {found[2]}D.",
        "Use the layer of that dimension, or unsqueeze what is missing (a batch, a channel).",
    ),
    r"input\.size\(-1\) must be equal to input_size\. Expected (\d+), got (\d+)": lambda found, failure: (
        f"{_who(failure)} takes {found[1]} features, and its input has {found[2]} in the last dimension.",
        f"Give it input_size={found[2]}.",
    ),
    r"Expected hidden(?:\[\d\])? size (\(.*?\)), got (\[.*?\])": lambda found, failure: (
        f"{_who(failure)} needs a hidden state of shape {found[1]}, and got {found[2]}.",
        "The state has the shape (layers, batch, features), also with batch_first=True; the last batch may be smaller.",
    ),
    r"Kernel size can't be greater than actual input size": _said(
        "The images have become too small: fewer strides or pools before it, or padding."),
    r"Sizes of tensors must match except in dimension (\d+).*": _said("Pad or crop the tensors to one size first."),
    r"stack expects each tensor to be equal size.*": _said(
        "Pad the tensors to one size first, for example with pad_sequence."),
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)":
    lambda found, failure: (
        f"{_who(failure)} combines tensors that have {found[1]} and {found[2]} elements in dimension {found[3]}.",
        "Only a dimension of size 1 is broadcast: unsqueeze or transpose one of them.",
    ),
    r"shape '(.*?)' is invalid for input of size (\d+)": lambda found, failure: (
        f"{_who(failure)} asks for the shape {found[1]}, and there are {found[2]} elements.",
        "Write -1 for the batch, as the last one may be smaller: x.view(x.size(0), -1).",
    ),
    r"Expected all tensors to be on the same device.*": _said(
        "Move the model and each batch to one device: model.to(device), x.to(device). Tensors made in forward need "
        "device=x.device."),
    r"Class values must be smaller than num_classes": _said("Make num_classes the largest label plus 1."),
    r".*out of memory.*": _said("Use a smaller batch, mixed precision, or checkpointing."),
}  # fmt: skip
"""What PyTorch's messages mean, first match first."""
