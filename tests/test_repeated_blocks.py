"""Of repeated blocks one is shown; blocks that differ, or are small, are shown in full."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule.derivation.repeated_blocks import RepeatedBlocks, Repetition
from chainrule.document import Table
from chainrule.report.block_tables import names
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


def repetitions(recording):
    return [(each.shown, each.others) for each in repeated(recording).repetitions]


def repeated(recording):
    return RepeatedBlocks(recording.graph, recording.derivation, lambda contribution: "agrees")


def test_the_first_block_is_shown_and_the_others_are_rows_of_its_tables(deep):
    recording, document = deep
    assert repetitions(recording) == [("h.0", ("h.1", "h.2", "h.3"))]
    titles = ["".join(s if isinstance(s, str) else s.source for s in section.title) for _, section in document.walk()]
    assert [title for title in titles if ", like " in title] == [
        "Forward: h.1 to h.3, like h.0",
        "Backward: h.1 to h.3, like h.0",
    ]
    assert not any(re.search(r"h\.[123]\.", title) for title in titles)
    assert "h.0.attn.c_attn.weight" in titles


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
        if isinstance(block, Table)
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
        ([Block() for _ in range(3)], [("0", ("1", "2"))]),
        ([Block(scale=1.0 + i) for i in range(3)], []),  # other numbers in the code
        ([Block(), Block(steps=11), Block(), Block()], [("0", ("2", "3"))]),
        ([Block().eval(), Block(), Block(), Block()], [("1", ("2", "3"))]),
        ([Block(), Block(), Block(), Block().requires_grad_(False)], [("0", ("1", "2"))]),
    ],
)
def test_only_equivalent_large_blocks_are_folded(blocks, expected):
    assert repetitions(record(nn.Sequential(*blocks), torch.randn(2, 4, requires_grad=True))) == expected


def test_a_block_in_which_something_disagrees_is_shown_in_full():
    recording = record(nn.Sequential(*[Block() for _ in range(4)]), torch.randn(2, 4, requires_grad=True))
    bad = next(step for step in recording.steps if step.kind == "backward" and step.call is not None
               and recording.graph.calls[step.call].module == "2")  # fmt: skip
    kinds = {id(contribution): "disagrees" for contribution in bad.contributions}
    found = RepeatedBlocks(
        recording.graph, recording.derivation, lambda contribution: kinds.get(id(contribution), "agrees")
    )
    assert [(each.shown, each.others) for each in found.repetitions] == [("0", ("1", "3"))]


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
    ("others", "text"),
    [
        (("h.1", "h.2"), "h.1 and h.2"),
        (("h.1", "h.2", "h.3"), "h.1 to h.3"),
        (("h.1", "h.2", "h.4"), "h.1, h.2 and h.4"),
        (("h.1", "h.3", "h.4", "h.5"), "h.1 and h.3 to h.5"),
        (("down", "middle", "up"), "down to up"),
    ],
)
def test_a_block_that_is_shown_is_in_no_range(others, text):
    assert names(Repetition("h.0", others)) == text
