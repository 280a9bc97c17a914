"""Small networks whose training step is easy to work out by hand: whole numbers, few digits, exact decimals.

Layers are linear, with ReLU between them and the mean squared error at the end, so that every number of the step is
rational. The search draws small whole numbers, keeps the networks that have something to show (units that are on for
one sample and off for another), and takes the one whose numbers have the fewest digits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import chain

from chainrule.errors import RequestError

SAMPLES = 2
LEARNING_RATE = "0.1"
INPUTS, WEIGHTS, BIASES, ERRORS = (-2, -1, 1, 2, 3), (-2, -1, 1, 2), (-2, -1, 1, 2), (-2, -1, 1, 2)
DRAWS, ENOUGH = 20_000, 40  # networks drawn for one variant, and fitting ones among them that are compared
WIDEST, DEEPEST = 6, 6
_SIZES = re.compile(r"\d+(-\d+)+")

Matrix = tuple[tuple[int, ...], ...]
Numbers = list[list[int]]


@dataclass(frozen=True)
class Wish:
    """What a network must have: its sizes from input to output, a unit that is off for every sample, a kink at 0."""

    sizes: tuple[int, ...]
    dead_unit: bool = False
    kink: bool = False


@dataclass(frozen=True)
class Network:
    """The numbers of one variant. Samples are rows, a row of a weight is a neuron."""

    inputs: Matrix
    targets: Matrix
    weights: tuple[Matrix, ...]
    biases: tuple[tuple[int, ...], ...]


def is_sizes(text: str) -> bool:
    """Whether this is `2-3-2-1` and not the name of a file."""
    return bool(_SIZES.fullmatch(text))


def sizes_of(text: str) -> tuple[int, ...]:
    """The sizes of the layers in `2-3-2-1`; RequestError where that is no network for a sheet of paper."""
    sizes = tuple(map(int, text.split("-")))
    if len(sizes) > DEEPEST or not all(1 <= size <= WIDEST for size in sizes):
        raise RequestError(
            f"--network {text}: a network to work out by hand has at most {DEEPEST - 1} layers of 1 to {WIDEST} units. "
            "Write the sizes from input to output, as in 2-3-2-1."
        )
    return sizes


def networks(wish: Wish, seed: int, count: int) -> Iterator[Network]:
    """So many different networks, the same ones for the same seed; RequestError where there are not so many."""
    seen: set[Network] = set()
    for variant in range(1, count + 1):
        draw = random.Random(f"{seed}/{variant}/{wish}")
        best = min(_fitting(wish, draw, seen), key=lambda each: ease(each)[0], default=None)
        if best is None:
            wanted = " and ".join(["a dead unit"] * wish.dead_unit + ["a kink"] * wish.kink)
            raise RequestError(
                f"no {'-'.join(map(str, wish.sizes))} network {f'with {wanted} ' if wanted else ''}was found for "
                f"variant {variant}. Ask for fewer variants, or for other sizes."
            )
        seen.add(best)
        yield best


def _fitting(wish: Wish, draw: random.Random, seen: set[Network]) -> Iterator[Network]:
    found = 0
    for _ in range(DRAWS):
        network = _drawn(wish, draw)
        if network is not None and network not in seen:
            yield network
            found += 1
            if found == ENOUGH:
                return


def _drawn(wish: Wish, draw: random.Random) -> Network | None:
    """A network of random numbers; None where it lacks what is wished for, or what is worth a question."""

    def matrix(rows: int, columns: int, numbers: tuple[int, ...]) -> Matrix:
        return tuple(tuple(draw.choice(numbers) for _ in range(columns)) for _ in range(rows))

    inputs = matrix(SAMPLES, wish.sizes[0], INPUTS)
    if len(set(inputs)) < SAMPLES:
        return None
    activation: Numbers = [list(row) for row in inputs]
    weights, biases, hidden = [], [], []
    for index, (before, size) in enumerate(zip(wish.sizes, wish.sizes[1:], strict=False), 2):
        weights.append(matrix(size, before, WEIGHTS))
        biases.append(matrix(1, size, BIASES)[0])
        result = _linear(activation, weights[-1], biases[-1])
        if index < len(wish.sizes):
            hidden.append(result)
            result = _relu(result)
        activation = result
    if not _worth_it(hidden, wish):
        return None
    step = _whole(SAMPLES * wish.sizes[-1])
    targets = tuple(tuple(number - step * draw.choice(ERRORS) for number in row) for row in activation)
    network = Network(inputs, targets, tuple(weights), tuple(biases))
    gradients = [each for name, each in numbers_of(network).items() if name.startswith("dJ/d")]
    return network if all(any(chain.from_iterable(each)) for each in gradients) else None


def _whole(count: int) -> int:
    """What the errors must be a multiple of so that their mean over `count` numbers is a short decimal."""
    for factor in (2, 5):
        while count % factor == 0:
            count //= factor
    return count


def _worth_it(hidden: list[Numbers], wish: Wish) -> bool:
    """Whether a ReLU is on for one sample and off for another, and kinks and dead units are as wished."""
    units = [column for layer in hidden for column in zip(*layer, strict=True)]
    kinks = sum(number == 0 for unit in units for number in unit)
    dead = sum(all(number <= 0 for number in unit) for unit in units)
    mixed = any(max(unit) > 0 > min(unit) for unit in units)
    needed = mixed or len(units) <= dead + 1
    return kinks == wish.kink and dead == wish.dead_unit and needed


def _linear(rows: Numbers, weight: Matrix, bias: tuple[int, ...]) -> Numbers:
    return [
        [sum(x * w for x, w in zip(row, neuron, strict=True)) + b for neuron, b in zip(weight, bias, strict=True)]
        for row in rows
    ]


def _relu(rows: Numbers) -> Numbers:
    return [[max(0, number) for number in row] for row in rows]


# -- every number of the step, exactly --------------------------------------------------------------------------------


def numbers_of(network: Network) -> dict[str, list[list[Fraction]]]:
    """Every number of the step by its name: `Z1`, `A1`, `J`, `dJ/dZ1`, `dJ/dW1`, `new W1`, ..."""
    activations: list[Numbers] = [[list(row) for row in network.inputs]]
    sums: list[Numbers] = []
    last = len(network.weights)
    found: dict[str, list[list[Fraction]]] = {}
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
        sums.append(_linear(activations[-1], weight, bias))
        found[f"Z{layer}"] = _fractions(sums[-1])
        if layer < last:
            activations.append(_relu(sums[-1]))
            found[f"A{layer}"] = _fractions(activations[-1])
    errors = [[a - y for a, y in zip(*rows, strict=True)] for rows in zip(sums[-1], network.targets, strict=True)]
    count = SAMPLES * len(network.targets[0])
    found["J"] = [[Fraction(sum(error**2 for row in errors for error in row), count)]]
    scale, rate = Fraction(2, count), Fraction(LEARNING_RATE)
    upstream = errors
    for layer in range(last, 0, -1):
        weight, bias = network.weights[layer - 1], network.biases[layer - 1]
        if layer < last:
            signs = sums[layer - 1]
            upstream = [[g * (z > 0) for g, z in zip(*rows, strict=True)] for rows in zip(upstream, signs, strict=True)]
        columns = list(zip(*upstream, strict=True))
        inputs = list(zip(*activations[layer - 1], strict=True))
        of_weight = [[sum(g * a for g, a in zip(column, row, strict=True)) for row in inputs] for column in columns]
        of_bias = [[sum(column) for column in columns]]
        found[f"dJ/dZ{layer}"] = _fractions(upstream, scale)
        found[f"dJ/dW{layer}"] = _fractions(of_weight, scale)
        found[f"dJ/db{layer}"] = _fractions(of_bias, scale)
        for name, before, gradient in ((f"W{layer}", weight, of_weight), (f"b{layer}", (bias,), of_bias)):
            found[f"new {name}"] = [
                [w - rate * scale * g for w, g in zip(*rows, strict=True)]
                for rows in zip(before, gradient, strict=True)
            ]
        if layer > 1:
            upstream = [
                [sum(g * w for g, w in zip(row, column, strict=True)) for column in zip(*weight, strict=True)]
                for row in upstream
            ]
            found[f"dJ/dA{layer - 1}"] = _fractions(upstream, scale)
    return found


def _fractions(rows: Numbers, scale: Fraction = Fraction(1)) -> list[list[Fraction]]:
    return [[number * scale for number in row] for row in rows]


def ease(network: Network) -> tuple[int, float]:
    """How hard the step is by hand: the sum of the squared numbers of digits, and the mean number of digits."""
    counts = [digits(number) for each in numbers_of(network).values() for row in each for number in row]
    return sum(count**2 for count in counts), sum(counts) / len(counts)


def digits(number: Fraction) -> int:
    """How many digits a reader writes: 1 for 7 and for 0, 2 for -1.5, 3 for 0.25."""
    shortest = (Decimal(number.numerator) / Decimal(number.denominator)).normalize()
    return len(f"{abs(shortest):f}".replace(".", ""))


# -- the step as a script ---------------------------------------------------------------------------------------------


def script(network: Network, title: str) -> str:
    """A PyTorch file with the network and its training step, as a user would write it."""
    count = len(network.weights)
    layers = [
        f"        self.linear{layer} = linear({_floats(weight)}, {_floats(bias)})"
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1)
    ]
    forward, name = [], "X"
    for layer in range(1, count + 1):
        forward.append(f"        Z{layer} = self.linear{layer}({name})")
        if layer < count:
            forward.append(f"        A{layer} = F.relu(Z{layer})")
            name = f"A{layer}"
    return "\n".join((
        f'"""{title}"""', "",
        "import torch", "import torch.nn.functional as F", "from torch import nn", "",
        f"X = torch.tensor({_floats(network.inputs)})", f"Y = torch.tensor({_floats(network.targets)})", "", "",
        "def linear(weight, bias):",
        "    layer = nn.Linear(len(weight[0]), len(weight))",
        "    layer.weight = nn.Parameter(torch.tensor(weight))",
        "    layer.bias = nn.Parameter(torch.tensor(bias))",
        "    return layer", "", "",
        "class Network(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *layers, "",
        "    def forward(self, X):",
        *forward,
        f"        return Z{count}", "", "",
        "model = Network()",
        f"optimizer = torch.optim.SGD(model.parameters(), lr={LEARNING_RATE})", "", "",
        "def train_step():",
        "    optimizer.zero_grad()",
        "    output = model(X)",
        "    cost = F.mse_loss(output, Y)",
        "    cost.backward()",
        "    optimizer.step()",
        "    return cost", "", "",
        'if __name__ == "__main__":',
        "    print(train_step().item())", "",
    ))  # fmt: skip


def _floats(numbers: tuple[object, ...]) -> str:
    return "[" + ", ".join(_floats(each) if isinstance(each, tuple) else f"{each}.0" for each in numbers) + "]"
