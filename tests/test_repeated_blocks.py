"""Of repeated blocks one is shown; blocks that differ, or are small, are shown in full."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule.document import Table
from tests.browser.transformer import Transformer


def record(model, *inputs, loss=None, optimizer=None):
    with chainrule.record() as recording:
        out = model(*inputs)
        cost = out.square().mean() if loss is None else loss(out)
        cost.backward()
        if optimizer is not None:
            optimizer.step()
    return recording


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    model = Transformer(vocabulary=11, width=8, heads=2, layers=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens, targets = torch.randint(11, (1, 5)), torch.randint(11, (5,))
    recording = record(model, tokens, loss=lambda out: F.cross_entropy(out.flatten(0, 1), targets), optimizer=optimizer)
    return recording, recording.document(pointing=True)


def titles(document):
    return ["".join(s if isinstance(s, str) else s.source for s in section.title) for _, section in document.walk()]


def repetitions(recording):
    """The blocks that the document does not show, each time with the one that it shows for them."""
    found = [title.split(": ", 1) for title in titles(recording.document()) if ", like " in title]
    folded = {kind: [text for each, text in found if each == kind] for kind in ("Forward", "Backward")}
    assert folded["Forward"] == folded["Backward"][::-1]
    return folded["Forward"]


def test_the_first_block_is_shown_and_the_others_are_rows_of_its_tables(deep):
    recording, document = deep
    assert repetitions(recording) == ["h.1 to h.3, like h.0"]
    told = titles(document)
    assert [title for title in told if ", like " in title] == [
        "Forward: h.1 to h.3, like h.0",
        "Backward: h.1 to h.3, like h.0",
    ]
    assert not any(re.search(r"h\.[123]\.", title) for title in told)
    assert "h.0.attn.c_attn.weight" in told


def test_every_block_has_its_own_statistics(deep):
    recording, document = deep
    sections = {section.anchor: section for _, section in document.walk()}
    row = next(row for row in document.rows if row.module == "h.0.mlp.1")
    [table] = [block for block in sections[row.forward].blocks if isinstance(block, Table)]
    assert [cells[0][0].source for cells in table.rows] == ["h.0", "h.1", "h.2", "h.3"]
    for block, cells in enumerate(table.rows):
        value = recording[f"h.{block}.mlp.1"].data
        assert float(cells[table.headers.index("norm")][0]) == pytest.approx(value.norm().item(), abs=1e-4)
        assert float(cells[table.headers.index("max")][0]) == pytest.approx(value.max().item(), abs=1e-4)
    [gradient] = [b for anchor in row.backward for b in sections[anchor].blocks if isinstance(b, Table)]
    for block, cells in enumerate(gradient.rows):
        grad = recording[f"h.{block}.mlp.1"].grad
        assert float(cells[1][0]) == pytest.approx(grad.norm().item(), abs=1e-4)
        assert cells[-1] == ("agrees",)


def test_the_update_of_every_parameter_is_compared_with_pytorchs(deep):
    recording, document = deep
    tables = [
        block
        for _, section in document.walk()
        if section.kind == "update"
        for block in section.blocks
        if isinstance(block, Table) and block.label
    ]
    folded = [name for name in recording.parameters if name.startswith("h.0.")]
    assert [table.label for table in tables] == [f"{name} in each block" for name in folded]
    assert {cells[-1] for table in tables for cells in table.rows} == {("agrees",)}


def test_every_value_has_a_row_that_leads_to_a_section(deep):
    _, document = deep
    anchors = {section.anchor for _, section in document.walk()}
    assert {f"h.{block}.attn.c_attn" for block in range(4)} <= {row.module for row in document.rows}
    for row in document.rows:
        assert {row.forward, *row.backward} - {None} <= anchors, row.name
        if row.kind == "operation":
            assert row.forward, row.name
            assert row.backward, row.name
    of = {row.module: row for row in document.rows if row.kind == "operation"}
    assert of["h.2.ln_1"].forward == of["h.0.ln_1"].forward != of["ln_f"].forward


def test_anchors_keep_the_numbers_of_their_steps(deep):
    recording, document = deep
    forward = [step for step in recording.steps if step.kind == "forward"]
    last = next(row for row in document.rows if row.kind == "loss")
    assert last.forward == f"forward-{len(forward)}"


def test_the_notebook_of_a_folded_step_runs(deep):
    recording, _ = deep
    document = recording.document(coded=True)
    code = "\n".join(section.code for _, section in document.walk() if section.code)
    assert "h_3" in code
    exec(compile(code, "notebook", "exec"), {})


class Block(nn.Module):
    def __init__(self, width=4, steps=10, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.steps, self.scale = steps, scale

    def forward(self, x):
        x = self.linear(x)
        for _ in range(self.steps):
            x = torch.tanh(x * self.scale)
        return x


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([Block(), Block()], []),  # two
        ([Block(steps=2) for _ in range(5)], []),  # small
        ([Block() for _ in range(3)], ["1 and 2, like 0"]),
        ([Block(scale=1.0 + i) for i in range(3)], []),  # other numbers in the code
        ([Block(), Block(steps=11), Block(), Block()], ["2 and 3, like 0"]),
        ([Block().eval(), Block(), Block(), Block()], ["2 and 3, like 1"]),
        ([Block(), Block(), Block(), Block().requires_grad_(False)], ["1 and 2, like 0"]),
    ],
)
def test_only_equivalent_large_blocks_are_folded(blocks, expected):
    assert repetitions(record(nn.Sequential(*blocks), torch.randn(2, 4, requires_grad=True))) == expected


class Doubled(torch.autograd.Function):
    """What it is given, twice; its backward is wrong the `wrong`-th time that it runs."""

    runs = wrong = 0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        Doubled.runs += 1
        return (3 if Doubled.runs == Doubled.wrong else 2) * g


class Own(Block):
    """A block with an operation of its user's."""

    def forward(self, x):
        return Doubled.apply(super().forward(x))


def test_a_block_in_which_something_disagrees_is_shown_in_full(monkeypatch):
    def step(wrong):
        monkeypatch.setattr(Doubled, "runs", 0)
        monkeypatch.setattr(Doubled, "wrong", wrong)
        return record(nn.Sequential(*[Own() for _ in range(5)]), torch.randn(2, 4, requires_grad=True))

    assert repetitions(step(wrong=0)) == ["1 to 4, like 0"]
    # On the way back block 1 is the fourth; the parameters of block 0 get what came through it.
    assert repetitions(step(wrong=4)) == ["3 and 4, like 2"]


def test_one_module_that_runs_repeatedly_is_shown_each_time():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            for _ in range(4):
                x = self.block(x)
            return x

    assert repetitions(record(Shared(), torch.randn(2, 4, requires_grad=True))) == []


def test_the_largest_element_of_a_large_gradient_is_explained(deep):
    recording, document = deep
    row = next(row for row in document.rows if row.name == "h.0.mlp.0.weight")
    [made] = [each for each in document.sums if (each.of.row, each.of.role) == (row.index, "gradient")]
    grad = recording.parameters["h.0.mlp.0.weight"].grad
    assert grad[made.of.index].abs() == grad.abs().max()
    assert sum(summand.value for summand in made.summands) == pytest.approx(grad[made.of.index].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("names", "odd", "text"),
    [
        ("012", "", "1 and 2, like 0"),
        ("0123", "", "1 to 3, like 0"),
        ("01234", "3", "1, 2 and 4, like 0"),
        ("012345", "2", "1 and 3 to 5, like 0"),
        (("deep", "down", "middle", "up"), "", "down to up, like deep"),
    ],
)
def test_a_block_that_is_shown_is_in_no_range(names, odd, text):
    blocks = OrderedDict((name, Block(steps=11 if name == odd else 10)) for name in names)
    assert repetitions(record(nn.Sequential(blocks), torch.randn(2, 4, requires_grad=True))) == [text]
