"""A step of which statistics were kept, or one block besides, in every view: no crash, no number made of nothing."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import chainrule
from chainrule.errors import MissingError
from chainrule.views import by_suffix
from tests.browser.transformer import Transformer

STATISTICS, BLOCK = "statistics", ["h.2.*"]


def recorded(keep, optimizer=torch.optim.AdamW):
    """The second step, which finds something in the optimizer's state."""
    torch.manual_seed(0)
    model = Transformer(vocabulary=300, width=72, heads=2, layers=4, context=48)
    updater = optimizer(model.parameters(), lr=1e-3)
    tokens, targets = torch.randint(300, (2, 48)), torch.randint(300, (96,))
    for chosen in ("all", keep):
        with chainrule.record(keep=chosen) as recording:
            updater.zero_grad()
            F.cross_entropy(model(tokens).flatten(0, 1), targets).backward()
            updater.step()
    return recording


@pytest.fixture(scope="module", params=[STATISTICS, BLOCK], ids=["statistics", "block"])
def recording(request):
    return recorded(request.param)


@pytest.mark.parametrize("suffix", by_suffix())
def test_every_view_is_written_and_makes_up_no_number(suffix: str, recording, tmp_path: Path) -> None:
    recording.save(tmp_path / f"step{suffix}")
    text = (tmp_path / f"step{suffix}").read_text(encoding="utf-8")
    if suffix in (".md", ".tex", ".txt"):
        assert "numbers not kept" in text
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
        assert "disagrees" not in text


def test_the_summary_says_what_is_known_of_each(recording) -> None:
    text = str(recording)
    assert "norm" in text
    assert not re.search(r"\bnan\b", text)
    assert recording._repr_mimebundle_()["text/plain"] == text


def test_every_row_that_got_a_gradient_has_its_size(recording) -> None:
    document = recording.document(pointing=True)
    values = {row.name: row for row in document.rows if row.kind in ("operation", "parameter")}
    for row in values.values():
        for told in (row.value, row.gradient):
            assert told is None or told.entries is not None or "norm" in dict(told.statistics), row.name
    trained = [row for row in document.rows if row.kind == "parameter"]
    assert all(row.gradient is not None and row.update is not None for row in trained)


def test_nothing_is_said_to_be_checked_that_was_not(recording) -> None:
    kinds = {
        cell
        for _, section in recording.document().walk()
        for block in section.blocks
        if getattr(block, "headers", ())[-1:] == ("check",)
        for row in block.rows
        for cell in row[-1]
    }
    assert "not checked" in kinds
    assert "disagrees" not in kinds


def test_why_says_that_the_terms_were_not_kept_and_how_to_have_them(recording) -> None:
    with pytest.raises(MissingError, match=r"only statistics were kept\. Ask recording\.recompute\("):
        recording.why("h.1.mlp.0.weight", (0, 0))


def test_what_was_loaded_is_told_in_the_same_way(recording, tmp_path: Path) -> None:
    recording.save(tmp_path / "step.safetensors")
    assert str(chainrule.load(tmp_path / "step.safetensors")) == str(recording)


def test_a_block_is_kept_with_its_inputs_and_the_gradients_of_its_parameters() -> None:
    recording = recorded(BLOCK)
    kept = recording.parameters["h.2.mlp.0.weight"]
    assert None not in (kept.before, kept.grad, kept.after)
    assert recording.parameters["h.1.mlp.0.weight"].grad is None
    why = recording.why("h.2.mlp.0.weight", (0, 0))
    assert len(why.terms) > 1
    assert why.total == pytest.approx(kept.grad[0, 0].item(), rel=1e-3)


def test_what_measuring_runs_is_not_recorded() -> None:
    counts = {str(keep): len(recorded(keep).graph.operations) for keep in ("all", STATISTICS, BLOCK)}
    assert len(set(counts.values())) == 1, counts


def test_an_optimizer_without_a_rule_and_one_without_state() -> None:
    class Own(torch.optim.SGD):
        pass

    for optimizer in (Own, torch.optim.SGD, torch.optim.Adagrad):
        text = str(recorded(BLOCK, optimizer)) + chainrule.views.written(recorded(BLOCK, optimizer).document(), ".md")
        assert not re.search(r"\bnan\b", text)
