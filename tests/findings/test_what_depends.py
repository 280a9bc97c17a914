"""Samples that mix, positions that see the future, inputs that are ignored: and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule

KINDS = {"samples-mix", "sees-the-future", "targets-shifted-twice", "ignored-input"}
N, T, C, V = 4, 7, 8, 11


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def found(loss: Callable[[], Tensor]) -> dict[str, chainrule.diagnostics.Finding]:
    with chainrule.record(namespace={}) as recording:
        loss().backward()
    return {each.id: each for each in recording.findings() if each.id in KINDS}


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(N, T, C), torch.randint(3, (N,))


def letters() -> tuple[Tensor, Tensor]:
    """A row of letters and the next ones, as two tensors of their own."""
    text = torch.randint(V, (N, T + 1))
    return text[:, :-1].clone(), text[:, 1:].clone()


def encoder(batch_first: bool = True) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(C, 2, 16, dropout=0.0, batch_first=batch_first)


HEAD, LETTERS, OUT = nn.Linear(C, 3), nn.Embedding(V, C), nn.Linear(C, V)
MASK = nn.Transformer.generate_square_subsequent_mask(T)


def of_letters(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


# -- samples that mix -------------------------------------------------------------------------------------------------


def test_rows_that_are_not_those_of_the_samples() -> None:
    x, y = rows()
    layer, wide = nn.LSTM(C, C, batch_first=True, bidirectional=True), nn.Linear(2 * C, 3)
    merged = found(lambda: F.cross_entropy(wide(layer(x)[1][0].view(N, -1)), y))["samples-mix"]
    assert "view" in merged.sentence
    assert "parts of several into one row" in merged.sentence
    assert "samples-mix" not in found(lambda: F.cross_entropy(wide(layer(x)[1][0].transpose(0, 1).reshape(N, -1)), y))
    x = torch.randn(N, N, C)
    last = found(lambda: F.cross_entropy(wide(layer(x)[0][-1]), y))["samples-mix"]
    assert "takes one of them for all" in last.sentence
    assert "samples-mix" not in found(lambda: F.cross_entropy(wide(layer(x)[0][:, -1]), y))


def test_halves_of_a_batch_that_are_compared_are_no_mixture() -> None:
    x, y = torch.randn(2 * N, C), torch.arange(2 * N).roll(N)

    def loss() -> Tensor:
        first, second = HEAD(x).view(2, N, 3).unbind()
        both = torch.cat((first, second))
        return F.cross_entropy(both @ both.T - 9 * torch.eye(2 * N), y)

    assert "samples-mix" not in found(loss)


def test_attention_along_the_batch() -> None:
    (x, y), layer = rows(), encoder(batch_first=False)
    mixed = found(lambda: F.cross_entropy(HEAD(layer(x).mean(1)), y))["samples-mix"]
    assert mixed.severity == "warning"
    assert "multi_head_attention_forward" in mixed.sentence
    assert any(line.startswith("Moving position") for line in mixed.evidence)
    assert mixed.place is not None
    assert mixed.place.line


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_network_along_the_batch(cell: type[nn.RNNBase]) -> None:
    (x, y), wrong, right = rows(), cell(C, C), cell(C, C, batch_first=True)
    assert set(found(lambda: F.cross_entropy(HEAD(wrong(x)[0][:, -1]), y))) == {"samples-mix", "ignored-input"}
    assert not found(lambda: F.cross_entropy(HEAD(right(x)[0][:, -1]), y))


def test_a_reshape_that_takes_the_place_of_a_transpose() -> None:
    (x, y), cell = rows(), nn.LSTM(C, C)
    assert set(found(lambda: F.cross_entropy(HEAD(cell(x.view(T, N, C))[0][-1]), y))) == {"samples-mix"}
    assert not found(lambda: F.cross_entropy(HEAD(cell(x.transpose(0, 1))[0][-1]), y))


def test_what_may_mix_samples() -> None:
    (x, y), norm, layer, cell = rows(), nn.BatchNorm1d(T), encoder(), nn.LSTM(C, C)
    time_major, flat = torch.randn(T, N, C), nn.Linear(T * C, 3)
    nodes, labels, graph = torch.randn(6, C), torch.randint(3, (6,)), (torch.rand(6, 6) < 0.5).float()
    source, target = torch.randint(6, (12,)), torch.randint(6, (12,))
    pair = torch.randn(N, T, C)
    for loss in (
        lambda: F.cross_entropy(HEAD(layer(norm(x)).mean(1)), y),
        lambda: F.cross_entropy(flat(((x - x.mean(0)) / x.std(0)).flatten(1)), y),
        lambda: F.cross_entropy(HEAD(cell(time_major)[0]).flatten(0, 1), torch.randint(3, (T * N,))),
        lambda: F.mse_loss(cell(time_major)[0], torch.randn(T, N, C)),
        lambda: F.cross_entropy(HEAD(cell(time_major)[0][-1]), y),
        lambda: F.cross_entropy(HEAD(graph @ nodes), labels),
        lambda: F.cross_entropy(
            HEAD(torch.zeros(6, C).index_add(0, target, HEAD.weight.sum() * nodes[source])), labels
        ),
        lambda: F.cross_entropy(flat(x.flatten(1)) @ flat(pair.flatten(1)).mT, torch.arange(N)),
        lambda: F.cross_entropy(HEAD(cell(nodes)[0]), labels),  # one sequence without a batch
    ):
        assert "samples-mix" not in found(loss)


@pytest.mark.parametrize("mixed", [
    lambda x: 0.3 * x + 0.7 * x[torch.randperm(N)],
    lambda x: 0.3 * x + 0.7 * x.flip(0),
    lambda x: torch.where(torch.arange(T)[:, None] < 2, x, x[torch.randperm(N)]),
], ids=["mixup", "flip", "cutmix"])  # fmt: skip
def test_an_augmentation_may_mix_the_data(mixed: Callable[[Tensor], Tensor]) -> None:
    (x, y), cell = rows(), nn.LSTM(C, C, batch_first=True)
    assert "samples-mix" not in found(lambda: F.cross_entropy(HEAD(cell(mixed(x))[0][:, -1]), y))


# -- positions that see the future ------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [(None,), (MASK, None), (None, MASK)])
@pytest.mark.parametrize("cut", [False, True])
def test_targets_that_are_the_next_positions(masks: tuple[Tensor | None, ...], cut: bool) -> None:
    text, layers = torch.randint(V, (N, T + 1)), [encoder() for _ in masks]
    x, y = (text[:, :-1].clone(), text[:, 1:].clone())

    def loss() -> Tensor:
        hidden = LETTERS(text[:, :-1] if cut else x)
        for layer, mask in zip(layers, masks, strict=True):
            hidden = layer(hidden, mask)
        return of_letters(OUT(hidden), text[:, 1:] if cut else y)

    seen = found(loss)["sees-the-future"]
    assert "next positions" in seen.sentence or "shifted by one" in seen.sentence
    assert any(line.startswith("Moving position") for line in seen.evidence)


def test_targets_two_positions_later_unless_others_are_the_next() -> None:
    text, cell = torch.randint(V, (N, T + 3)), nn.GRU(C, C, batch_first=True)
    x, ones, twos, fours = (text[:, by : by + T].clone() for by in (0, 1, 2, 3))

    def loss(*targets: Tensor) -> Tensor:
        return sum((of_letters(OUT(cell(LETTERS(x))[0]), y) for y in targets), torch.zeros(()))

    shifted = found(lambda: loss(twos))["targets-shifted-twice"]
    assert (shifted.severity, shifted.sentence) == ("warning", "The targets are the tokens of x 2 positions later.")
    assert "3 positions later" in found(lambda: loss(fours))["targets-shifted-twice"].sentence
    assert not found(lambda: loss(ones))
    assert not found(lambda: loss(ones, twos))  # one head for each of the next tokens
    assert not found(lambda: F.mse_loss(OUT(cell(LETTERS(x))[0]), F.one_hot(twos, V).float()))


def test_an_operation_that_undoes_a_causal_mask() -> None:
    x, _ = letters()
    y, first, second = torch.randint(V, (N, T)), encoder(), encoder()
    assert (
        "causal mask" in found(lambda: of_letters(OUT(second(first(LETTERS(x), MASK))), y))["sees-the-future"].sentence
    )
    assert not found(lambda: of_letters(OUT(second(first(LETTERS(x), MASK), MASK)), y))


def test_a_convolution_that_is_padded_on_both_sides() -> None:
    (x, y), layer = letters(), nn.Conv1d(C, C, 3)

    def loss(*padding: int) -> Tensor:
        return of_letters(OUT(layer(F.pad(LETTERS(x).mT, padding)).mT), y)

    assert "sees-the-future" in found(lambda: loss(1, 1))
    assert not found(lambda: loss(2, 0))


def test_what_may_see_all_positions() -> None:
    (x, y), both = letters(), nn.LSTM(C, C, batch_first=True, bidirectional=True)
    wide, decoder = nn.Linear(2 * C, V), nn.TransformerDecoderLayer(C, 2, 16, dropout=0.0, batch_first=True)
    tags, layer, source, series = torch.randint(V, (N, T)), encoder(), torch.randint(V, (N, T)), torch.randn(N, 2 * T)
    low = torch.full((T, T), -1e9).triu(1)
    ahead = nn.Linear(T, T)
    for loss in (
        lambda: of_letters(wide(both(LETTERS(x))[0]), tags),
        lambda: of_letters(wide(both(LETTERS(x))[0]), x),
        lambda: of_letters(OUT(layer(LETTERS(x.masked_fill(torch.rand(N, T) < 0.3, 0)))), x),
        lambda: of_letters(OUT(layer(LETTERS(x), MASK)), y),
        lambda: of_letters(OUT(layer(LETTERS(x), low)), y),
        lambda: of_letters(OUT(decoder(LETTERS(x), layer(LETTERS(source)), MASK)), y),
        lambda: F.mse_loss(ahead(series[:, :T]), series[:, T:]),
        lambda: F.cross_entropy(HEAD(layer(LETTERS(x), MASK).mean(1)), torch.randint(3, (N,))),
    ):
        assert not found(loss)


def test_a_batch_that_the_step_draws_or_chooses_from_a_text() -> None:
    text, layer, many = torch.randint(V, (60,)), encoder(), torch.randint(V, (40, T + 1))

    def batches() -> list[Callable[[], tuple[Tensor, Tensor]]]:
        def drawn() -> tuple[Tensor, Tensor]:
            rows = torch.randint(V, (N, T + 1))
            return rows[:, :-1], rows[:, 1:]

        def chosen() -> tuple[Tensor, Tensor]:
            rows = many[torch.randint(40, (N,))]
            return rows[:, :-1], rows[:, 1:]

        def stacked() -> tuple[Tensor, Tensor]:
            at = torch.randint(60 - T - 1, (N,)).tolist()
            return torch.stack([text[i : i + T] for i in at]), torch.stack([text[i + 1 : i + T + 1] for i in at])

        return [drawn, chosen, stacked]

    for batch in batches():
        for mask in (None, MASK):

            def loss(batch: Callable[[], tuple[Tensor, Tensor]] = batch, mask: Tensor | None = mask) -> Tensor:
                x, y = batch()
                return of_letters(OUT(layer(LETTERS(x), mask)), y)

            assert set(found(loss)) == (set() if mask is not None else {"sees-the-future"})


def test_what_is_no_target_of_the_next_position() -> None:
    layer = encoder()

    def second() -> Tensor:
        rows = torch.randint(V, (N, T))
        return F.cross_entropy(OUT(layer(LETTERS(rows)).mean(1)), rows[:, 1])

    def recalled() -> Tensor:
        rows = torch.randn(N, T, C)
        return F.mse_loss(HEAD(layer(rows).mean(1)), rows[:, 1:4, 0])

    assert not found(second)
    assert not found(recalled)


def test_what_a_measurement_takes_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("retention", "borrowed"):  # the letters are kept, and no weight and no gate
        monkeypatch.setattr(f"chainrule.capture.{module}.SMALL", 256)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.out = nn.Embedding(V, C), nn.Linear(2 * C, V)
            self.both = nn.GRU(C, C, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.both(self.letters(x))[0])

    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch(model, optimizer, every=1, on_finding=False) as watch:
        for _ in range(2):
            x, y = letters()
            of_letters(model(x), y).backward()
            optimizer.step()
    (seen,) = (each for each in watch.findings if each.id == "sees-the-future")
    assert any(line.startswith("Moving position") for line in seen.evidence)


# -- inputs that are ignored ------------------------------------------------------------------------------------------


def test_half_of_the_positions_reach_no_loss() -> None:
    (x, y), layer = rows(), nn.Linear(C, C)

    def loss(first: int) -> Tensor:
        return F.cross_entropy(HEAD(layer(x).tanh()[:, first:].mean(1)), y)

    ignored = found(lambda: loss(4))["ignored-input"]
    assert ignored.sentence.startswith("4 of 7 positions of ")
    assert not found(lambda: loss(3))


def test_what_was_left_out_before_the_first_layer_is_a_choice() -> None:
    (x, y), layer = rows(), nn.Linear(C, C)
    assert not found(lambda: F.cross_entropy(HEAD(layer(x[:, -1]).tanh()), y))
    assert not found(lambda: F.cross_entropy(HEAD(layer(x).softmax(1)[:, -1]), y))


class Attending(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.causal = nn.Linear(8, 24), causal

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.mT
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1) > 0, -torch.inf)
        return x + scores.softmax(-1) @ v


@pytest.mark.parametrize(("batch", "length", "said"), [(2, 8, " in 2 lets positions"), (8, 32, ") lets positions")])
def test_the_layer_without_a_mask_is_named_where_the_numbers_show_it(batch, length, said):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), Attending(True), Attending(False), nn.Linear(8, 11))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(11, (batch, length + 1))
    with chainrule.watch(model, optimizer) as watch:
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    (seen,) = (each for each in watch.findings if each.id == "sees-the-future")
    assert said in str(seen)
